"""Root-mean-square norm."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.rms_norm import rms_norm


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, then scales each element.

    Args:
        dims: width of the last axis.
        eps: added to the mean square.
        offset: added to the weight, which starts at ``1 - offset``. With 1, as in Gemma, weight decay pulls the scale
            towards one instead of zero.
        scaled: whether there is a weight at all.

    Shapes:
        ``(..., dims)`` to the same.

    Source: Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4; the offset: Gemma Team 2024, "Gemma".
    """

    def __init__(self, dims: int, eps: float = 1e-5, offset: float = 0.0, scaled: bool = True):
        super().__init__()
        self.dims, self.eps, self.offset = dims, eps, offset
        if scaled:
            self.weight = mx.full((dims,), 1.0 - offset)

    def __call__(self, x: mx.array) -> mx.array:
        weight = self.get("weight")
        if weight is not None and self.offset:
            weight = weight + self.offset
        return rms_norm(x, weight, self.eps)
