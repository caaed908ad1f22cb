"""RWKV-7: time mixing by a generalised delta rule."""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Shared
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.chunks import reset_at_documents
from lmxexp.ops.documents import starts
from lmxexp.ops.dplr import dplr, dplr_flops
from lmxexp.ops.exp import sigmoid
from lmxexp.ops.l2_norm import l2_norm
from lmxexp.ops.token_shift import token_shift

_STRONGEST = 0.6065306597126334  # exp(-1/2): a channel keeps at least exp(-exp(-1/2)) = 0.545 of itself at a position


class RWKV7(nn.Module):
    """Recurrent mixing in which the model learns at test time: a matrix state, moved towards each new value.

    Six mixes of each position with the one before it give receptance r, key k, value v, and through low-rank layers a
    decay w of every channel, a rate a of learning in context, and a gate g. With ``kappa = k * k_k``, of length 1 in
    each head, the state forgets by channel, drops what it holds under kappa as far as a says, and takes in the value:

        S_t = S_{t-1} (diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T (k_t * (1 + (a_t - 1) * k_a))
        y_t = groupnorm(S_t r_t) + (r_t . (r_k * k_t)) v_t
        out = o_proj(g_t * y_t)

    Layers above the first mix their values with the first one's. Parallel over chunks in training, see `dplr`.

    Args:
        d_model: width of the input and output.
        n_heads: heads.
        n_layers: layers in the stack; what mixes and decays start at depends on the depth.
        layer_idx: place in the stack, counted from 0. The mixer at 0 has no value residual; where another kind stands
            there, the residual of the first RWKV layer has no effect.
        head_dim: width of a head; None: ``d_model / n_heads``.
        decay_rank: rank of the layer that gives w; None: ``1.8 sqrt(d_model)`` to the nearest multiple of 32, at
            least 32.
        a_rank: of the one that gives a; None: likewise.
        v_rank: of the one that gives the share of the first layer's values; None: ``1.3 sqrt(d_model)``, rounded
            likewise.
        gate_rank: of the one that gives g; None: ``0.6 d_model^0.8``, rounded likewise.
        eps: of the group norm.
        chunk: positions computed at once in training.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``D + n_heads head_dim^2`` elements, whatever the length. Mixing: see `dplr_flops`; linear in the length.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4. Initial values of
        vectors and ranks are those of the authors' training code (BlinkDL/RWKV-LM); matrices start by ``model.init``
        like those of all kinds, and one learning rate serves all (theirs is doubled for the decay's bias).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_layers: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        decay_rank: int | None = None,
        a_rank: int | None = None,
        v_rank: int | None = None,
        gate_rank: int | None = None,
        eps: float = 64e-5,
        chunk: int = 32,
    ):
        super().__init__()
        head_dim = head_width(d_model, n_heads, head_dim)
        if chunk < 1:
            raise ConfigError(f"attention.chunk={chunk} must be at least 1")
        self.n_heads, self.head_dim, self.layer_idx = n_heads, head_dim, layer_idx
        self.eps, self.chunk = eps, chunk
        self.takes_shared = True
        width = n_heads * head_dim
        depth = min(layer_idx, n_layers - 1)  # a layer beyond the stack starts like its last
        start = _InitialValues(d_model, width, head_dim, depth, n_layers)

        self.x_r, self.x_g = start.mix(0.2), start.mix(0.2)
        self.x_w, self.x_a = start.mix(0.9), start.mix(0.9)
        self.x_k, self.x_v = start.mix(0.7), start.mix(0.7)
        self.k_k, self.k_a = 0.71 - 0.1 * start.line, mx.full((width,), 1.02)
        self.r_k = mx.full((width,), -0.04)
        self.r_proj = nn.Linear(d_model, width, bias=False)
        self.k_proj = nn.Linear(d_model, width, bias=False)
        self.v_proj = nn.Linear(d_model, width, bias=False)
        self.o_proj = nn.Linear(width, d_model, bias=False)
        self.w_lora = LowRank(d_model, decay_rank or _rank(1.8 * d_model**0.5), width, mx.tanh, start.decay)
        self.a_lora = LowRank(d_model, a_rank or _rank(1.8 * d_model**0.5), width, None, start.rate)
        if layer_idx > 0:
            self.v_lora = LowRank(d_model, v_rank or _rank(1.3 * d_model**0.5), width, None, 0.73 - 0.4 * start.line)
        self.g_lora = LowRank(d_model, gate_rank or _rank(0.6 * d_model**0.8), width, sigmoid, None)
        self.g_norm = GroupNorm(n_heads, head_dim, eps, ((depth + 1) / n_layers) ** 0.7)

    def __call__(
        self,
        x: mx.array,
        *,
        cache: RecurrentCache | None = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> mx.array:
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        before, last = token_shift(x, cache.get("last") if cache else None, segment_ids)
        difference = before - x
        mixed = lambda share: x + difference * share
        r, k = self.r_proj(mixed(self.x_r)), self.k_proj(mixed(self.x_k))
        v = self._values(mixed(self.x_v), shared)
        log_w = -_STRONGEST * sigmoid(self.w_lora(mixed(self.x_w)).astype(mx.float32))
        rate = sigmoid(self.a_lora(mixed(self.x_a)).astype(mx.float32)).astype(x.dtype)
        gate = self.g_lora(mixed(self.x_g))

        kappa = l2_norm(self._heads(k * self.k_k), eps=1e-14)  # no more than keeps a zero from being divided by itself
        k = k * (1.0 + (rate - 1.0) * self.k_a)
        r, log_w, k, v, rate = (self._heads(a) for a in (r, log_w, k, v, rate))
        away = -kappa
        decay = reset_at_documents(log_w, segment_ids)
        assert decay is not None
        if segment_ids is not None:  # a document's first position reads nothing of the state before it
            away = mx.where(starts(segment_ids)[:, None, :, None], 0.0, away)
        state = cache.get("state") if cache else None
        y, state = dplr(r, decay, k, v, away, kappa * rate, state, self.chunk)
        if cache is not None:
            cache.update(x.shape[1], last=last, state=state)

        own = (r * k * self.r_k.reshape(self.n_heads, 1, self.head_dim)).sum(axis=-1, keepdims=True) * v
        y = self.g_norm(y.swapaxes(1, 2)) + own.swapaxes(1, 2).reshape(gate.shape)
        return self.o_proj(gate * y)

    def _values(self, x: mx.array, shared: Shared | None) -> mx.array:
        """``(B, L, D)`` to values of all heads, mixed with the first layer's."""
        v = self.v_proj(x)
        if shared is None:
            return v
        first = shared.setdefault("rwkv7_first_values", v)
        return v + (first - v) * sigmoid(self.v_lora(x)) if "v_lora" in self else v

    def _heads(self, x: mx.array) -> mx.array:
        """``(B, L, H C) -> (B, H, L, C)``."""
        return x.reshape(*x.shape[:2], self.n_heads, self.head_dim).swapaxes(1, 2)

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.x_r.size + self.n_heads * self.head_dim**2

    def mixing_flops(self, seq_len: int) -> int:
        return self.n_heads * dplr_flops(seq_len, self.head_dim, self.head_dim, self.chunk) // seq_len


class LowRank(nn.Module):
    """``up(activation(down(x))) + bias``, through a narrow middle.

    The bias is no ``nn.Linear``'s: it starts at a value of its own, where laws of initialisation put zeros.

    Args:
        dims: width of the input.
        rank: of the middle.
        width: of the output.
        activation: in the middle; None: none.
        bias: its initial value; None: no bias.

    Shapes:
        ``(B, L, dims) -> (B, L, width)``.
    """

    def __init__(
        self,
        dims: int,
        rank: int,
        width: int,
        activation: Callable[[mx.array], mx.array] | None,
        bias: mx.array | None,
    ):
        super().__init__()
        self.down, self.up = nn.Linear(dims, rank, bias=False), nn.Linear(rank, width, bias=False)
        self.activation = activation
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        x = self.down(x)
        y = self.up(x if self.activation is None else self.activation(x))
        return y + self.bias if "bias" in self else y


class GroupNorm(nn.Module):
    """Layer norm of each head by itself, with a scale and an offset for every channel.

    Args:
        n_heads: groups.
        head_dim: width of one.
        eps: added to the variance.
        scale: what the scale starts at.

    Shapes:
        ``(B, L, H, C) -> (B, L, H C)``.

    Source: Wu & He 2018, "Group Normalization", with the statistics of one position.
    """

    def __init__(self, n_heads: int, head_dim: int, eps: float, scale: float = 1.0):
        super().__init__()
        self.eps = eps
        self.weight = mx.full((n_heads * head_dim,), scale)
        self.bias = mx.zeros((n_heads * head_dim,))

    def __call__(self, x: mx.array) -> mx.array:
        y = mx.fast.layer_norm(x, None, None, self.eps)
        return y.reshape(*x.shape[:2], -1) * self.weight + self.bias


class _InitialValues:
    """What RWKV-7's vectors start at: spread over channels, differently at every depth.

    Not a module: what it holds are no parameters.
    """

    def __init__(self, d_model: int, width: int, head_dim: int, layer_idx: int, n_layers: int):
        depth = layer_idx / max(n_layers - 1, 1)
        channel = mx.arange(width) / max(width - 1, 1)
        within = 2.0 * (mx.arange(width) % head_dim) / max(head_dim - 1, 1) - 1.0
        zigzag = within * mx.abs(within)
        self._channel, self._rest = mx.arange(d_model) / d_model, 1.0 - layer_idx / n_layers
        self.line = channel - 0.5
        self.decay = -6.0 + 6.0 * channel ** (1.0 + depth**0.3) + 0.5 + 2.5 * zigzag
        self.rate = -0.19 + 0.3 * zigzag + 0.4 * self.line

    def mix(self, power: float) -> mx.array:
        """The share of the position before: less in the later channels, and in deeper layers."""
        return 1.0 - self._channel ** (power * self._rest)


def _rank(about: float) -> int:
    return max(32, round(about / 32) * 32)
