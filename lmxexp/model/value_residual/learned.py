"""Values of the first layer in all later ones."""

import mlx.core as mx
import mlx.nn as nn


class ValueResidual(nn.Module):
    """``a * first + b * own``: a layer's values mixed with those of the first attention layer, by two learned scalars.

    Args:
        first: initial share of the first layer's values.
        own: initial share of the layer's own.

    Shapes:
        ``(B, K, L, C)`` twice to the same.

    Source: Zhou et al. 2024, "Value Residual Learning", eq. 5 (learnable variant; both shares start at 0.5).
    """

    def __init__(self, first: float = 0.5, own: float = 0.5):
        super().__init__()
        self.first, self.own = mx.full((1,), first), mx.full((1,), own)

    def __call__(self, values: mx.array, first: mx.array) -> mx.array:
        return self.first * first + self.own * values
