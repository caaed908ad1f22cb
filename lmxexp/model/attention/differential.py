"""Differential attention."""

import math

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.attention.reach import Full


class DifferentialAttention(GroupedQueryAttention):
    """The difference of two softmax attentions: what both find anyway, noise, cancels out.

    Heads h and ``h + n_heads / 2`` are a pair. Both attend to the same values, twice as wide as their keys: those
    of two key-value heads side by side. The pair's output is ``a - lambda b``, normalised and multiplied by
    ``1 - lambda_init``, where ``lambda = exp(q1 . k1) - exp(q2 . k2) + lambda_init`` with four learned vectors of the
    layer and ``lambda_init = 0.8 - 0.6 exp(-0.3 layer_idx)``.

    Args:
        d_model: width of the input and output.
        n_heads: single heads, even; two make a pair.
        n_kv_heads: key heads, even; divides ``n_heads``. Values are of as many heads of single width.
        head_norm: factory of the norm over a pair's output, ``2 head_dim`` wide.
        layer_idx: place in the stack, counted from 0.
        head_dim: width of a single head; None: ``d_model / n_heads``.
        position: factory of a `Position`; None: no positions. Where it has a bias (ALiBi), the two heads of
            a pair have different ones.
        qk_norm: factory of a norm of ``(B, L, H, C)``, see `GroupedQueryAttention`.
        softcap: factory of a function on the scores; a factory that returns None leaves the slot empty.
        reach: how far back a position sees, see `lmxexp.model.attention.reach`; None: all the way.
        gate: factory of a gate on the output, see `OutputGate`, or None.
        sinks: factory of learned sinks, see `Sinks`, or None.
        value_residual: factory of what mixes the values with those of the first such layer, or None.
        bias: whether the output projection has a bias.
        qkv_bias: whether the other three have one; None: as ``bias``.
        dropout: probability of dropping an attention weight in training, for each half of the values on its own.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``2 n_kv_heads head_dim`` elements a position within reach. Mixing: ``8 n_heads head_dim`` FLOPs a
        visible position: each half of the values is attended to by itself, because fused kernels want values as wide
        as keys, so the scores are computed twice.

    Raises:
        ConfigError: heads that make no pairs, sizes that do not divide.

    Source: Ye et al. 2024, "Differential Transformer", eq. 1 to 3. As in the released DiffLlama, the order of heads is
        first halves before second, and the norm of a pair has no scale; the authors' code interleaves them and has one.
        The four vectors are drawn as in the paper (normal, 0.1), but the same for every seed.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        head_norm: Factory,
        layer_idx: int = 0,
        head_dim: int | None = None,
        position: Factory | None = None,
        qk_norm: Factory | None = None,
        softcap: Factory | None = None,
        reach: Full | None = None,
        gate: Factory | None = None,
        sinks: Factory | None = None,
        value_residual: Factory | None = None,
        bias: bool = False,
        qkv_bias: bool | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            layer_idx=layer_idx,
            head_dim=head_dim,
            position=position,
            qk_norm=qk_norm,
            softcap=softcap,
            reach=reach,
            gate=gate,
            sinks=sinks,
            value_residual=value_residual,
            bias=bias,
            qkv_bias=qkv_bias,
            dropout=dropout,
        )
        for key, value in {"n_heads": n_heads, "n_kv_heads": n_kv_heads}.items():
            if value % 2:
                raise ConfigError(f"model.{key}={value} must be even for attention=differential, which pairs heads")
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_idx)
        draw = lambda key: 0.1 * mx.random.normal((self.head_dim,), key=key)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = map(
            draw, mx.random.split(mx.random.key(layer_idx), 4)
        )
        self.head_norm = head_norm(2 * self.head_dim)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        """``(B, H/2, L, 2C)``, the pairs' outputs."""
        # Both key heads of a pair go with the same half of the values, so each half is there twice.
        halves = [mx.concatenate([half, half], axis=1) for half in mx.split(v, 2, axis=1)]
        found = mx.concatenate(
            [super(DifferentialAttention, self)._attend(q, k, half, mask) for half in halves], axis=-1
        )
        first, second = mx.split(found, 2, axis=1)
        difference = first - self._lambda().astype(found.dtype) * second
        return self.head_norm(difference) * (1.0 - self.lambda_init)

    def _lambda(self) -> mx.array:
        """The layer's factor of the second map, a scalar in fp32."""
        dot = lambda a, b: (a.astype(mx.float32) * b.astype(mx.float32)).sum()
        first = mx.exp(dot(self.lambda_q1, self.lambda_k1))
        return first - mx.exp(dot(self.lambda_q2, self.lambda_k2)) + self.lambda_init

    def mixing_flops(self, seq_len: int) -> int:
        return 2 * super().mixing_flops(seq_len)
