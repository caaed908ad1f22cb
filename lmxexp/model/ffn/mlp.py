"""Two-layer feed-forward."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux
from lmxexp.model.recompute import cheap
from lmxexp.ops.activation import Activation
from lmxexp.ops.activation import activation as activation_by_name


class MLP(nn.Module):
    """``down(activation(up(x)))``.

    Args:
        d_model: width of input and output.
        d_ff: hidden width; None: ``4 d_model``.
        activation: see `lmxexp.ops.activation`.
        bias: whether both layers have biases.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        ``2 d_model d_ff`` weights.

    Source: Vaswani et al. 2017, section 3.3, with the activation a choice.
    """

    def __init__(self, d_model: int, d_ff: int | None = None, activation: Activation = "gelu", bias: bool = False):
        super().__init__()
        d_ff = d_ff or 4 * d_model
        self.d_ff, self.activation_name = d_ff, activation
        self.activation = activation_by_name(activation)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        return self.down_proj(cheap(self.activation, self.up_proj(x))), {}
