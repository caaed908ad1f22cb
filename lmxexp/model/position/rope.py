"""Rotary position embedding."""

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.ops.rope import rope


class RoPE:
    """Turns each pair of a query's and key's elements by an angle proportional to the position.

    The scores then depend on distances alone. Angles are computed in fp32 whatever the type of the queries: positions
    are exact up to 2**24.

    Args:
        head_dim: width of a head, even.
        n_heads: not used.
        theta: base of the wavelengths: of ``dims`` elements that are turned, pair i turns by
            ``theta ** (-2i / dims)`` a position.
        fraction: share of a head's elements that is turned, its first ones, rounded down to whole pairs but at least
            one; the rest is left as it is.
        interleaved: whether a pair is two neighbours, as in the paper (GPT-J, DeepSeek, Llama 4); otherwise
            elements i and i + dims/2, as in Llama's published weights. The two differ by a permutation of the
            projections' rows.
        scaling: factory of what changes the angles for sequences longer than the model was made for, see
            `lmxexp.model.position.scaling`; None: nothing.

    Shapes:
        ``rotate``: ``(B, H, L, C), (B, K, L, C)`` to the same.

    Raises:
        ConfigError: a head of odd width without pairs, a ``theta`` or ``fraction`` out of range.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", eq. 34; the fraction: Black
        et al. 2022, "GPT-NeoX-20B", section 2.1.1.
    """

    def __init__(
        self,
        head_dim: int,
        n_heads: int,
        theta: float = 10000.0,
        fraction: float = 1.0,
        interleaved: bool = False,
        scaling: Factory | None = None,
    ):
        if not 0.0 < fraction <= 1.0:
            raise ConfigError(f"model.position.attention.fraction={fraction} must be in (0, 1]")
        if theta <= 1.0:
            raise ConfigError(f"model.position.attention.theta={theta} must be more than 1")
        if head_dim < 2 or (fraction == 1.0 and head_dim % 2):
            raise ConfigError(f"head_dim={head_dim} must be even for position=rope, which turns pairs")
        self.head_dim, self.theta, self.fraction, self.interleaved = head_dim, theta, fraction, interleaved
        self.dims = max(2, 2 * int(head_dim * fraction / 2))
        self.scaling = scaling = scaling() if scaling else None
        # What the kernel wants: positions per radian. A list, because an array in a traced function is an input of its.
        self.periods = None if scaling is None else [1.0 / f for f in scaling.frequencies(self.dims, theta)]
        self.magnitude = 1.0 if scaling is None else scaling.magnitude
        self.score_scale = 1.0 if scaling is None else scaling.score_scale
        self.is_plain = scaling is None and not interleaved and self.dims == head_dim
        """Whether it is `lmxexp.ops.rope.rope` of whole heads."""

    def rotate(self, q: mx.array, k: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        return self._turn(q, offset), self._turn(k, offset)

    def _turn(self, x: mx.array, offset: int) -> mx.array:
        if self.is_plain and x.shape[-1] == self.head_dim and offset == 0:
            return rope(x, self.theta)
        x = mx.fast.rope(
            x,
            self.dims,
            traditional=self.interleaved,
            base=self.theta if self.periods is None else None,
            scale=1.0,
            offset=offset,
            freqs=None if self.periods is None else mx.array(self.periods),
        )
        if self.magnitude == 1.0:
            return x
        if self.dims == self.head_dim:
            return x * self.magnitude
        return mx.concatenate([x[..., : self.dims] * self.magnitude, x[..., self.dims :]], axis=-1)

    def bias(self, n_q: int, n_k: int) -> mx.array | None:
        return None
