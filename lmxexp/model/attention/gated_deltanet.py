"""Gated DeltaNet: the delta rule with a decay per head."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError
from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.attention.step_size import log_spaced_steps
from lmxexp.model.recompute import cheap
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.chunks import reset_at_documents
from lmxexp.ops.delta_rule import delta_rule_flops, gated_delta_rule
from lmxexp.ops.exp import sigmoid, silu
from lmxexp.ops.l2_norm import l2_norm


class GatedDeltaNet(nn.Module):
    """A linear memory that forgets at a pace that the input sets, and corrects what is left towards the new value.

    Queries, keys and values pass a short convolution and silu; queries and keys have length one, and each pair of them
    serves ``n_heads / n_key_heads`` heads of values. Each head's output is normalised and gated by ``silu(z)``.

    Args:
        d_model: width of the input and output.
        n_heads: heads of values, gates, decays and betas.
        n_key_heads: heads of queries and keys; divides ``n_heads``.
        layer_idx: place in the stack, counted from 0: draws the convolution's first weights.
        head_dim: width of a head's queries and keys; None: ``d_model / n_heads``.
        expand_v: width of its values, in units of ``head_dim``.
        conv_width: positions that the convolution sees, the position's own among them.
        norm_eps: of the norm of each head's output.
        bias: whether projections have biases.
        chunk: positions that are computed at once: changes speed alone.

    Shapes:
        ``(B, L, D) -> (B, L, D)``. Rows of ``in_proj_qkvz`` are laid out key head by key head: its query, its key, the
        values and the gates of the heads that it serves; likewise the betas and decays of ``in_proj_ba``.

    Cost:
        Cache: ``n_heads C M + (conv_width - 1) (2 n_key_heads C + n_heads M)`` elements, whatever the length, C and M
        being the widths of keys and values. Mixing: about ``6 chunk (C + M) + 8 C M`` FLOPs a head of values and
        position, and up to ``2 C^2 (C + M) / chunk`` for the state from chunk to chunk.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule", eq. 10 and section
        3.4; Qwen Team 2025, "Qwen3-Next" (shared key heads, layout of the weights).
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_key_heads: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        expand_v: float = 1.0,
        conv_width: int = 4,
        norm_eps: float = 1e-6,
        bias: bool = False,
        chunk: int = 64,
    ):
        super().__init__()
        if n_heads < 1 or n_key_heads < 1 or n_heads % n_key_heads:
            raise ConfigError(f"model.n_heads={n_heads} must be a multiple of model.n_kv_heads={n_key_heads}")
        if chunk < 1:
            raise ConfigError(f"model.attention.chunk={chunk} must be at least 1")
        self.key_dim = head_width(d_model, n_heads, head_dim)
        self.value_dim = head_width(d_model, n_heads, head_dim, expand_v, "expand_v")
        self.n_heads, self.n_key_heads, self.chunk, self.norm_eps = n_heads, n_key_heads, chunk, norm_eps
        self.scale = self.key_dim**-0.5
        keys, values = n_key_heads * self.key_dim, n_heads * self.value_dim
        self.in_proj_qkvz = nn.Linear(d_model, 2 * keys + 2 * values, bias=bias)
        self.in_proj_ba = nn.Linear(d_model, 2 * n_heads, bias=bias)
        self.conv1d = DepthwiseConv1d(2 * keys + values, conv_width, bias=False, layer_idx=layer_idx)
        self.A_log = mx.log(mx.linspace(1.0, 16.0, n_heads))
        self.dt_bias = log_spaced_steps(n_heads)
        self.norm = nn.RMSNorm(self.value_dim, eps=norm_eps)
        self.out_proj = nn.Linear(values, d_model, bias=bias)

    def __call__(
        self, x: mx.array, *, cache: RecurrentCache | None = None, segment_ids: mx.array | None = None
    ) -> mx.array:
        B, L, _ = x.shape
        conv, state = (cache.get("conv"), cache.get("state")) if cache else (None, None)
        qkv, z, beta, log_decay = self._project(x)
        qkv, conv = self.conv1d(qkv, conv, segment_ids)
        keys = self.n_key_heads * self.key_dim
        q, k, v = mx.split(silu(qkv), [keys, 2 * keys], axis=-1)
        q, k = (l2_norm(a.reshape(B, L, self.n_key_heads, self.key_dim)).transpose(0, 2, 1, 3) for a in (q, k))
        shared = self.n_heads // self.n_key_heads
        if shared > 1:
            q, k = mx.repeat(q, shared, axis=1), mx.repeat(k, shared, axis=1)
        v = v.reshape(B, L, self.n_heads, self.value_dim).transpose(0, 2, 1, 3)
        log_decay = reset_at_documents(log_decay, segment_ids)
        y, state = gated_delta_rule(q * self.scale, k, v, beta, log_decay, state, self.chunk)
        if cache is not None:
            cache.update(L, conv=conv, state=state)
        y = self.norm(y.transpose(0, 2, 1, 3))
        return self.out_proj(cheap(lambda y, z: (y * silu(z)).reshape(B, L, -1), y, z))

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Queries, keys and values side by side ``(B, L, 2 keys + values)``, gates ``(B, L, H, M)``, and, in fp32, beta
        and logarithms of decays ``(B, H, L)``."""
        B, L, _ = x.shape
        shared = self.n_heads // self.n_key_heads
        C, values = self.key_dim, shared * self.value_dim
        qkvz = self.in_proj_qkvz(x).reshape(B, L, self.n_key_heads, 2 * C + 2 * values)
        q, k, v, z = mx.split(qkvz, [C, 2 * C, 2 * C + values], axis=-1)
        qkv = mx.concatenate([a.reshape(B, L, -1) for a in (q, k, v)], axis=-1)
        ba = self.in_proj_ba(x).astype(mx.float32).reshape(B, L, self.n_key_heads, 2 * shared)
        b, a = (part.reshape(B, L, self.n_heads).transpose(0, 2, 1) for part in mx.split(ba, 2, axis=-1))
        pace = mx.exp(self.A_log.astype(mx.float32))[:, None]
        log_decay = -pace * nn.softplus(a + self.dt_bias.astype(mx.float32)[:, None])
        return qkv, z.reshape(B, L, self.n_heads, self.value_dim), sigmoid(b), log_decay

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.n_heads * self.key_dim * self.value_dim + self.conv1d.state_size()

    def mixing_flops(self, seq_len: int) -> int:
        flops = delta_rule_flops(seq_len, self.key_dim, self.value_dim, self.chunk)
        return self.conv1d.flops() + self.n_heads * flops // seq_len
