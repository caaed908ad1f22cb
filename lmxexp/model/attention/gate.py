"""A gate on what attention found."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.recompute import cheap
from lmxexp.ops.exp import sigmoid


class OutputGate(nn.Module):
    """``y * sigmoid(g_proj(x))``, element by element, before the output projection.

    Args:
        d_model: width of ``x``, the mixer's input.
        width: of ``y``, all heads together.
        bias: whether the projection has a bias.

    Shapes:
        ``(B, L, width), (B, L, D) -> (B, L, width)``.

    Source: Qiu et al. 2025, "Gated Attention for Large Language Models" (elementwise, after the weighted sum);
        Qwen3-Next.
    """

    def __init__(self, d_model: int, width: int, bias: bool = False):
        super().__init__()
        self.g_proj = nn.Linear(d_model, width, bias=bias)

    def __call__(self, y: mx.array, x: mx.array) -> mx.array:
        return cheap(lambda y, gate: y * sigmoid(gate), y, self.g_proj(x))
