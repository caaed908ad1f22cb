"""Linear attention: a sum of keys and values in place of the softmax."""

from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.position.rotated import rotated
from lmxexp.model.recurrent_cache import RecurrentCache
from lmxexp.ops.chunks import reset_at_documents
from lmxexp.ops.linear_attention import linear_attention, linear_attention_flops

FeatureMap = Literal["identity", "elu", "relu"]

_FEATURES = {
    "identity": lambda x: x,
    "elu": lambda x: nn.elu(x) + 1.0,  # above zero
    "relu": nn.relu,
}


class LinearAttention(nn.Module):
    """Attention whose weights are products of features of query and key: a memory of fixed size, linear cost.

    ``S <- decay S + f(k) v^T``, ``y = S^T f(q)``. With ``feature_map=elu`` and ``normalise=sum`` it is linear attention
    as first published: weights are positive and sum to one. A decay and a norm in place of the sum give retention (a
    fixed decay per head, rotary positions) and gated linear attention (a decay per channel that the input sets).

    Args:
        d_model: width of the input and output.
        n_heads: heads.
        layer_idx: not used.
        head_dim: width of a head; None: ``d_model / n_heads``.
        expand_k: width of a head's queries and keys, in units of ``head_dim``.
        expand_v: of its values.
        feature_map: f: identity, elu (``elu(x) + 1``) or relu.
        normalise: sum: divide by the sum of weights; rms: root-mean-square norm of each head, learned scale.
        norm_eps: of the norm; with ``sum``, added to the sum.
        decay: factory of a decay, see `lmxexp.model.attention.decay`; None: nothing is forgotten.
        position: factory of a `Position` that turns queries and keys; None, or one that builds None: no positions.
        gate: factory of a gate on the output, see `lmxexp.model.attention.linear_gate`, or None.
        bias: whether projections have biases.
        chunk: positions that are computed at once: changes speed alone.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``n_heads C M`` elements, C and M being the widths of keys and values (with ``sum``, M + 1), whatever the
        length. Mixing: about ``2 chunk (C + M) + 4 C M`` FLOPs a head and position.

    Raises:
        ConfigError: sizes that do not divide; positions that add to softmax scores; a sum with signed weights.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs: Fast Autoregressive Transformers with Linear Attention",
        eqs. 7-12; Sun et al. 2023, "Retentive Network", eqs. 5-8 (the norm undoes the paper's three scalings of scores,
        of which ``C^-0.5`` alone is kept; it is the mean square that it divides by); Yang et al. 2024, "Gated
        Linear Attention Transformers with Hardware-Efficient Training", section 4.4.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        expand_k: float = 1.0,
        expand_v: float = 1.0,
        feature_map: FeatureMap = "elu",
        normalise: Literal["sum", "rms"] = "sum",
        norm_eps: float = 1e-5,
        decay: Factory | None = None,
        position: Factory | None = None,
        gate: Factory | None = None,
        bias: bool = False,
        chunk: int = 64,
    ):
        super().__init__()
        if feature_map not in _FEATURES:
            raise ConfigError(f"model.attention.feature_map={feature_map}: there are {', '.join(_FEATURES)}")
        if normalise not in ("sum", "rms"):
            raise ConfigError(f"model.attention.normalise={normalise}: there are sum, rms")
        if normalise == "sum" and feature_map == "identity":
            raise ConfigError(
                "model.attention.normalise=sum divides by weights that feature_map=identity lets cancel: "
                "take feature_map=elu"
            )
        if chunk < 1:
            raise ConfigError(f"model.attention.chunk={chunk} must be at least 1")
        self.key_dim = head_width(d_model, n_heads, head_dim, expand_k, "expand_k")
        self.value_dim = head_width(d_model, n_heads, head_dim, expand_v, "expand_v")
        self.n_heads, self.chunk = n_heads, chunk
        self.feature_map, self.normalise, self.norm_eps = feature_map, normalise, norm_eps
        self.scale = self.key_dim**-0.5
        self.q_proj = nn.Linear(d_model, n_heads * self.key_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_heads * self.key_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_heads * self.value_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * self.value_dim, d_model, bias=bias)
        self.decay = decay(d_model=d_model, n_heads=n_heads, head_dim=self.key_dim) if decay else None
        self.position = position(head_dim=self.key_dim, n_heads=n_heads) if position else None
        if self.position is not None and self.position.bias(1, 1) is not None:
            raise ConfigError(
                "position=alibi adds to the scores of a softmax, which linear attention does not have: "
                "take position=rope or position=none"
            )
        self.o_norm = nn.RMSNorm(self.value_dim, eps=norm_eps) if normalise == "rms" else None
        self.gate = gate(d_model=d_model, n_heads=n_heads, head_dim=self.value_dim, bias=bias) if gate else None

    def __call__(
        self, x: mx.array, *, cache: RecurrentCache | None = None, segment_ids: mx.array | None = None
    ) -> mx.array:
        B, L, _ = x.shape
        q, k, v = (
            proj(x).reshape(B, L, self.n_heads, -1).transpose(0, 2, 1, 3)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotated(self.position, q, k, cache, segment_ids)
        features = _FEATURES[self.feature_map]
        q, k = features(q.astype(mx.float32)) * self.scale, features(k.astype(mx.float32))
        if self.normalise == "sum":
            # One more value, always one, adds up the weights.
            v = mx.concatenate([v, mx.ones_like(v[..., :1])], axis=-1)
        log_decay = reset_at_documents(self.decay(x) if self.decay is not None else None, segment_ids)
        y, state = linear_attention(
            q, k, v.astype(mx.float32), log_decay, cache.get("state") if cache else None, self.chunk
        )
        if cache is not None:
            cache.update(L, state=state)
        if self.normalise == "sum":
            y = y[..., :-1] / (y[..., -1:] + self.norm_eps)
        y = y.transpose(0, 2, 1, 3).astype(x.dtype)
        if self.o_norm is not None:
            y = self.o_norm(y)
        y = y.reshape(B, L, -1)
        return self.o_proj(y if self.gate is None else self.gate(y, x))

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.n_heads * self.key_dim * (self.value_dim + (self.normalise == "sum"))

    def mixing_flops(self, seq_len: int) -> int:
        per_channel = self.decay is not None and self.decay.per_channel
        value_dim = self.value_dim + (self.normalise == "sum")
        flops = linear_attention_flops(seq_len, self.key_dim, value_dim, self.chunk, per_channel)
        return self.n_heads * flops // seq_len
