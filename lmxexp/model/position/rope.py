"""Rotary position embedding."""

import mlx.core as mx

from lmxexp.interfaces import ConfigError


class RoPE:
    """Turns each pair of a query's and key's elements by an angle proportional to the position.

    The scores then depend on distances alone. Pairs are element i and i + C/2, as in Llama's published weights
    (the paper pairs neighbours; the two differ by a permutation of the projections' rows).

    Args:
        head_dim: width of a head, even.
        n_heads: not used.
        theta: base of the wavelengths: pair i turns by ``theta ** (-2i / head_dim)`` a position.

    Source: Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", eq. 34.
    """

    def __init__(self, head_dim: int, n_heads: int, theta: float = 10000.0):
        if head_dim % 2:
            raise ConfigError(f"head_dim={head_dim} must be even for position=rope, which turns pairs")
        self.head_dim, self.theta = head_dim, theta

    def rotate(self, q: mx.array, k: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        turn = lambda x: mx.fast.rope(x, self.head_dim, traditional=False, base=self.theta, scale=1.0, offset=offset)
        return turn(q), turn(k)

    def bias(self, n_q: int, n_k: int) -> mx.array | None:
        return None
