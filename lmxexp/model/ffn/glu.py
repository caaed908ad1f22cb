"""Gated feed-forward."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux
from lmxexp.model.recompute import cheap
from lmxexp.ops.activation import Activation
from lmxexp.ops.activation import activation as activation_by_name
from lmxexp.ops.gated import gated, silu_gated_halves
from lmxexp.ops.joined import can_be_joined, joined_product


def gated_width(d_model: int) -> int:
    """The hidden width at which three matrices have as many weights as two of ``4 d_model``, a multiple of 16."""
    return max(16, round(8 * d_model / 3 / 16) * 16)


class GatedLinearUnit(nn.Module):
    """``down(activation(gate(x)) * up(x))``: SwiGLU with silu, GEGLU with gelu.

    Args:
        d_model: width of input and output.
        d_ff: hidden width; None: ``8/3 d_model`` to the nearest multiple of 16, which gives the three matrices as
            many weights as the two of an MLP of hidden width ``4 d_model``.
        activation: of the gate, see `lmxexp.ops.activation`.
        bias: whether the three layers have biases.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        ``3 d_model d_ff`` weights.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """

    of_one_input = "gate_proj", "up_proj"

    def __init__(self, d_model: int, d_ff: int | None = None, activation: Activation = "silu", bias: bool = False):
        super().__init__()
        d_ff = d_ff or gated_width(d_model)
        self.d_ff, self.activation_name = d_ff, activation
        activation_by_name(activation)  # or it would be refused in the first step only
        self.gate_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.up_proj = nn.Linear(d_model, d_ff, bias=bias)
        self.down_proj = nn.Linear(d_ff, d_model, bias=bias)

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        layers = self.gate_proj, self.up_proj
        if self.activation_name == "silu" and can_be_joined(x, *layers):
            product = silu_gated_halves(joined_product(x, layers))
        else:
            product = cheap(partial(gated, self.activation_name), *(layer(x) for layer in layers))
        return self.down_proj(product), {}
