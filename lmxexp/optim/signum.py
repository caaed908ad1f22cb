"""Signum: the sign of a running mean of gradients."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.checks import check_fraction
from lmxexp.optim.full_precision import FullPrecision, zeros


class Signum(FullPrecision):
    """Moves every number by exactly the learning rate, against the sign of the gradient's running mean.

    Lion with both of its betas the same. Without momentum it is signSGD, and has no state. A number whose mean is
    exactly 0 stays where it is.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        momentum: How much of the running mean stays at each step, in [0, 1); 0: none, and no state.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: J. Bernstein et al., 2018, signSGD: Compressed Optimisation for Non-Convex Problems,
        https://arxiv.org/abs/1802.04434, algorithms 1 (signSGD) and 2 (Signum). Neither has a weight decay; this one
        stands outside the sign, as Lion's.
    """

    elementwise = True

    moves = "entrywise"

    def __init__(self, learning_rate: float | Schedule, momentum: float = 0.9, weight_decay: float = 0.3):
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_fraction("momentum", momentum)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)} if self.momentum else {}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        if not self.momentum:
            return mx.sign(gradient) * self.learning_rate
        state["m"] = state["m"] * self.momentum + gradient * (1 - self.momentum)
        return mx.sign(state["m"]) * self.learning_rate
