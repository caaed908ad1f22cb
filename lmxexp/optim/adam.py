"""Adam, as published: with bias correction and without weight decay."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.checks import check_betas, check_positive
from lmxexp.optim.full_precision import FullPrecision, zeros


class Adam(FullPrecision):
    """Moves by the mean of the gradient over the root of its mean square.

    MLX's Adam leaves the bias correction out by default, and computes ``1 - beta**step`` in fp32, which is wrong in
    the fifth digit for ``beta=0.999`` and in the fourth for 0.9999.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.

    Raises:
        ConfigError: A setting is outside its range.

    Source: D. Kingma and J. Ba, 2015, Adam: A Method for Stochastic Optimization, https://arxiv.org/abs/1412.6980,
        algorithm 1.
    """

    elementwise = True

    moves = "entrywise"

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
    ):
        super().__init__(learning_rate)
        self.betas = check_betas(betas)
        self.eps = check_positive("eps", eps)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter), "v": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        state["v"] = state["v"] * beta2 + mx.square(gradient) * (1 - beta2)
        rate = self.once_a_step("rate", lambda: self.learning_rate / self._weight_so_far(beta1))
        correction = self.once_a_step("correction", lambda: mx.rsqrt(self._weight_so_far(beta2)))
        root_mean_square = mx.sqrt(state["v"]) * correction
        return state["m"] * rate / (root_mean_square + self.eps)

    def _weight_so_far(self, beta: Any) -> mx.array:
        """``1 - beta**step``, exact to fp32 where beta is close to 1."""
        if isinstance(beta, int | float):
            log_beta = math.log(beta) if beta else -math.inf
        else:
            log_beta = beta.log()  # of the members of a population, see `lmxexp.population`
        return -mx.expm1(self.step.astype(mx.float32) * log_beta)
