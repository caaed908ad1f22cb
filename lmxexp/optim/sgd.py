"""Stochastic gradient descent with momentum."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.optim.checks import check_fraction, check_weight_decay
from lmxexp.optim.full_precision import FullPrecision, zeros


class SGD(FullPrecision):
    """Moves down the gradient, or down a running sum of gradients.

    The weight decay is *coupled*, as in PyTorch's SGD: ``weight_decay * p`` is added to the gradient and goes through
    the momentum, which makes it an L2 penalty. Only matrices have it; MLX's SGD decays vectors too.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        momentum: How much of the running sum stays at each step, in [0, 1); 0: none, and no state.
        nesterov: Look ahead by one step of momentum; needs ``momentum > 0``.
        weight_decay: L2 penalty of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range, or ``nesterov`` is asked for without momentum.

    Source: I. Sutskever et al., 2013, On the importance of initialization and momentum in deep learning,
        https://proceedings.mlr.press/v28/sutskever13.html, in PyTorch's form: the learning rate multiplies the sum, and
        is not in it.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(learning_rate)
        self.momentum = check_fraction("momentum", momentum)
        if nesterov and not momentum:
            raise ConfigError("nesterov=True needs momentum above 0: set momentum=0.9, or nesterov=false")
        self.nesterov = nesterov
        self.l2_penalty = check_weight_decay(weight_decay)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)} if self.momentum else {}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        if not self.momentum:
            return gradient * self.learning_rate
        state["m"] = state["m"] * self.momentum + gradient
        direction = gradient + state["m"] * self.momentum if self.nesterov else state["m"]
        return direction * self.learning_rate
