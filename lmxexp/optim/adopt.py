"""ADOPT: Adam that divides by the past alone, and takes the mean afterwards."""

from __future__ import annotations

import math

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.checks import check_positive


class ADOPT(AdamW):
    """Divides the gradient by the root mean square of the earlier ones, clips that, and moves by its running mean.

    The mean square without the gradient that it divides makes it converge with any ``betas[1]``, which Adam does not.
    The first step only starts the mean square and moves nothing (but for the decay). There is no bias to correct.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: The root mean square counts as at least this.
        clip_exponent: Before the mean, every number is clipped to ``(step - 1)**clip_exponent``; None: not at all, the
            paper's first version.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: S. Taniguchi et al., 2024, ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate,
        https://arxiv.org/abs/2411.02853, algorithm 2, whose step 0 is step 1 here. The authors' code leaves out the
        decay of the first step, too.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.9999],  # noqa: B006 - never changed
        eps: float = 1e-6,
        clip_exponent: float | None = 0.25,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)
        self.clip_exponent = None if clip_exponent is None else check_positive("clip_exponent", clip_exponent)

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        limit = self.once_a_step("limit", self._limit)
        kept = self.once_a_step("kept", lambda: self._later() * beta2)
        new = self.once_a_step("new", lambda: self._later() * (1 - beta2) + (1 - self._later()))
        least = self.once_a_step("least", lambda: mx.ones(()) * self.eps)  # `mx.maximum` takes no `OwnNumber`
        direction = gradient / mx.maximum(mx.sqrt(state["v"]), least)
        direction = mx.maximum(mx.minimum(direction, limit), -limit)
        state["m"] = state["m"] * beta1 + direction * (1 - beta1)
        state["v"] = state["v"] * kept + mx.square(gradient) * new
        return state["m"] * self.learning_rate

    def _later(self) -> mx.array:
        """0 at the first step, then 1."""
        return (self.step > 1).astype(mx.float32)

    def _limit(self) -> mx.array:
        """Of the direction: 0 at the first step, where there is nothing to divide by."""
        earlier = self.step.astype(mx.float32) - 1
        limit = mx.array(math.inf) if self.clip_exponent is None else earlier**self.clip_exponent
        return mx.where(earlier > 0, limit, 0.0)
