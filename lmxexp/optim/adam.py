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
        rate, correction = self.rate_and_correction()
        root_mean_square = mx.sqrt(state["v"]) * correction
        return state["m"] * rate / (root_mean_square + self.eps)

    def rate_and_correction(self) -> tuple[mx.array, mx.array]:
        """What the mean is multiplied by, ``learning_rate / (1 - beta1**step)``, and the root mean square, ``(1 -
        beta2**step) ** -0.5``: scalars."""
        both = self.once_a_step("rate and correction", self._rate_and_correction)
        rate, correction = (mx.squeeze(x, 0) for x in mx.split(both, 2))
        return rate, correction

    def _rate_and_correction(self) -> mx.array:
        # Both in one kernel: each takes seconds to compile on a new machine, and is a launch in every step.
        logs: Any = [log_of(beta) for beta in self.betas]
        of_members = not all(isinstance(log, float) for log in logs)
        logs = mx.stack([mx.array(log) for log in logs]) if of_members else mx.array(logs)
        roots = mx.rsqrt(-mx.expm1(logs * self.step.astype(mx.float32)))
        return roots * (roots * (mx.array([1.0, 0.0]) * self.learning_rate) + mx.array([0.0, 1.0]))

    def _weight_so_far(self, beta: Any) -> mx.array:
        """``1 - beta**step``, exact to fp32 where beta is close to 1."""
        return -mx.expm1(self.step.astype(mx.float32) * log_of(beta))


def log_of(beta: Any) -> Any:
    """The logarithm of a number in [0, 1), rounded from double precision; or each member's own."""
    if isinstance(beta, int | float):
        return math.log(beta) if beta else -math.inf
    return beta.log()  # of the members of a population, see `lmxexp.population`
