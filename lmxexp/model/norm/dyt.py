"""Dynamic tanh."""

import mlx.core as mx
import mlx.nn as nn


class DynamicTanh(nn.Module):
    """``weight * tanh(alpha * x) + offset``: squashes large elements as a norm does, with no statistics.

    Args:
        dims: width of the last axis.
        alpha: initial value of the one learned factor inside the tanh.
        bias: whether there is a learned offset.

    Shapes:
        ``(..., dims)`` to the same.

    Source: Zhu et al. 2025, "Transformers without Normalization", eq. 4 (``alpha`` 0.5 by default, section 5).
    """

    def __init__(self, dims: int, alpha: float = 0.5, bias: bool = True):
        super().__init__()
        self.alpha = mx.full((1,), alpha)
        self.weight = mx.ones((dims,))
        if bias:
            self.bias = mx.zeros((dims,))

    def __call__(self, x: mx.array) -> mx.array:
        y = self.weight * mx.tanh(self.alpha * x)
        return y + self.bias if "bias" in self else y
