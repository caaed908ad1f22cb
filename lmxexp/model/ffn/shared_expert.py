"""A shared expert with a gate."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.ops.activation import Activation
from lmxexp.ops.exp import sigmoid


class GatedSharedExpert(GatedLinearUnit):
    """A gated linear unit whose output counts by ``sigmoid(shared_expert_gate(x))``, one number per token.

    Args:
        d_model: width of input and output.
        d_ff: hidden width.
        activation: of the unit's own gate, see `lmxexp.ops.activation`.
        bias: whether the unit's three layers have biases.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        ``3 d_model d_ff + d_model`` weights.

    Source: Qwen Team 2024, "Qwen2 Technical Report", section 2.2.2 (shared experts); the gate as in its released code.
    """

    def __init__(self, d_model: int, d_ff: int, activation: Activation = "silu", bias: bool = False):
        super().__init__(d_model, d_ff, activation, bias)
        self.shared_expert_gate = nn.Linear(d_model, 1, bias=False)

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        y, aux = super().__call__(x)
        return y * sigmoid(self.shared_expert_gate(x)), aux
