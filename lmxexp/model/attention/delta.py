"""The delta rule: a linear memory that corrects what it holds."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.chunks import reset_at_documents
from lmxexp.ops.delta_rule import delta_rule_flops, gated_delta_rule
from lmxexp.ops.exp import sigmoid, silu
from lmxexp.ops.joined import side_by_side
from lmxexp.ops.l2_norm import l2_norm


class DeltaNet(nn.Module):
    """Linear attention whose memory moves what it holds under a key towards the new value, instead of adding to it.

    Queries, keys and values pass a short convolution and silu; queries and keys have length one. With a decay per
    channel and a gate it is Kimi Delta Attention.

    Args:
        d_model: width of the input and output.
        n_heads: heads.
        layer_idx: place in the stack, counted from 0: draws the convolution's first weights.
        head_dim: width of a head; None: ``d_model / n_heads``.
        conv_width: positions that the convolution sees, the position's own among them.
        decay: factory of a decay, see `lmxexp.model.attention.decay`; None: nothing is forgotten.
        gate: factory of a gate on the output, see `lmxexp.model.attention.linear_gate`, or None.
        norm_eps: of the norm of each head's output.
        bias: whether projections have biases.
        chunk: positions that are computed at once: changes speed alone.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``n_heads C^2 + 3 (conv_width - 1) n_heads C`` elements, whatever the length. Mixing: about
        ``12 chunk C + 8 C^2`` FLOPs a head and position, and up to ``4 C^3 / chunk`` for the state from chunk to chunk.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", section 3.4;
        Schlag et al. 2021, "Linear Transformers Are Secretly Fast Weight Programmers", eq. 24; Kimi Team 2025,
        "Kimi Linear: An Expressive, Efficient Attention Architecture", section 4.
    """

    of_one_input = "q_proj", "k_proj", "v_proj"

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        conv_width: int = 4,
        decay: Factory | None = None,
        gate: Factory | None = None,
        norm_eps: float = 1e-5,
        bias: bool = False,
        chunk: int = 64,
    ):
        super().__init__()
        if chunk < 1:
            raise ConfigError(f"model.attention.chunk={chunk} must be at least 1")
        head_dim = head_width(d_model, n_heads, head_dim)
        self.n_heads, self.head_dim, self.chunk, self.norm_eps = n_heads, head_dim, chunk, norm_eps
        self.scale = head_dim**-0.5
        width = n_heads * head_dim
        self.q_proj = nn.Linear(d_model, width, bias=bias)
        self.k_proj = nn.Linear(d_model, width, bias=bias)
        self.v_proj = nn.Linear(d_model, width, bias=bias)
        self.b_proj = nn.Linear(d_model, n_heads, bias=bias)
        self.o_proj = nn.Linear(width, d_model, bias=bias)
        self.conv1d = DepthwiseConv1d(3 * width, conv_width, bias=False, layer_idx=layer_idx)
        self.decay = decay(d_model=d_model, n_heads=n_heads, head_dim=head_dim) if decay else None
        self.o_norm = nn.RMSNorm(head_dim, eps=norm_eps)
        self.gate = gate(d_model=d_model, n_heads=n_heads, head_dim=head_dim, bias=bias) if gate else None

    def __call__(
        self, x: mx.array, *, cache: RecurrentCache | None = None, segment_ids: mx.array | None = None
    ) -> mx.array:
        B, L, _ = x.shape
        conv, state = (cache.get("conv"), cache.get("state")) if cache else (None, None)
        qkv = side_by_side(x, [self.q_proj, self.k_proj, self.v_proj])
        qkv, conv = self.conv1d(qkv, conv, segment_ids)
        q, k, v = silu(qkv).reshape(B, L, 3, self.n_heads, self.head_dim).transpose(2, 0, 3, 1, 4)
        beta = sigmoid(self.b_proj(x).astype(mx.float32)).transpose(0, 2, 1)
        log_decay = reset_at_documents(self.decay(x) if self.decay is not None else None, segment_ids)
        y, state = gated_delta_rule(l2_norm(q) * self.scale, l2_norm(k), v, beta, log_decay, state, self.chunk)
        if cache is not None:
            cache.update(L, conv=conv, state=state)
        y = self.o_norm(y.transpose(0, 2, 1, 3)).reshape(B, L, -1)
        return self.o_proj(y if self.gate is None else self.gate(y, x))

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.n_heads * self.head_dim**2 + self.conv1d.state_size()

    def mixing_flops(self, seq_len: int) -> int:
        per_channel = self.decay is not None and self.decay.per_channel
        flops = delta_rule_flops(seq_len, self.head_dim, self.head_dim, self.chunk, per_channel)
        return self.conv1d.flops() + self.n_heads * flops // seq_len
