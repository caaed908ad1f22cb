"""A norm over all heads together."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Factory


class AllHeads(nn.Module):
    """A norm over all heads' queries, or keys, as one vector.

    Args:
        head_dim: width of a head.
        n_heads: heads of what is normalised: the queries', or the keys'.
        norm: factory of the norm.

    Shapes:
        ``(B, L, H, C)`` to the same.

    Source: OLMo Team 2025, "2 OLMo 2 Furious", section 3.3.
    """

    def __init__(self, head_dim: int, n_heads: int, norm: Factory):
        super().__init__()
        self.norm = norm(n_heads * head_dim)

    def __call__(self, x: mx.array) -> mx.array:
        return self.norm(x.flatten(-2)).reshape(x.shape)
