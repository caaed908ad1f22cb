"""AdEMAMix: AdamW with a second, much slower mean of the gradient."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.optim.adam import log_of
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.checks import check_fraction
from lmxexp.optim.full_precision import zeros


class AdEMAMix(AdamW):
    """Moves by a fast and a slow mean of the gradient together, over the root of its mean square.

    Three arrays of state. The slow mean remembers thousands of steps; it is not corrected for its start at 0. Both its
    share ``alpha`` and its ``beta3`` have to rise slowly or the first steps diverge: ``alpha`` rises linearly from 0,
    and ``beta3`` from ``betas[0]`` in such a way that the half-life rises linearly. The paper lets both rise over the
    whole run.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the fast mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        alpha: What the slow mean is multiplied by, in the end; the authors' example has 8.
        beta3: How much of the slow mean stays at each step, in the end; in [0, 1).
        alpha_steps: Steps in which ``alpha`` rises; None: it is the same from the first.
        beta3_steps: Steps in which ``beta3`` rises; None: it is the same from the first.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: M. Pagliardini, P. Ablin and D. Grangier, 2024, The AdEMAMix Optimizer: Better, Faster, Older,
        https://arxiv.org/abs/2409.03137, algorithm 1 and the two schedulers of section 3, with ``beta_start`` the
        first of the betas, as in all of its experiments.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.999],  # noqa: B006 - never changed
        eps: float = 1e-8,
        alpha: float = 8.0,
        beta3: float = 0.9999,
        alpha_steps: int | None = None,
        beta3_steps: int | None = None,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"alpha={alpha} must not be negative: 8 is the authors' number")
        self.alpha = alpha
        self.beta3 = check_fraction("beta3", beta3)
        self.alpha_steps = _check_steps("alpha_steps", alpha_steps)
        self.beta3_steps = _check_steps("beta3_steps", beta3_steps)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {**super().moments(parameter), "m_slow": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        state["v"] = state["v"] * beta2 + mx.square(gradient) * (1 - beta2)
        # Not m_slow * beta3 + …: rounding 0.9999 to fp32 changes how fast it decays by 0.02 %, rounding 1e-4 does not.
        state["m_slow"] = state["m_slow"] + (gradient - state["m_slow"]) * self._new_in_slow_mean()
        rate, correction = self.rate_and_correction()
        slow_rate = self.once_a_step("slow_rate", lambda: self.learning_rate * self._alpha_now())
        root_mean_square = mx.sqrt(state["v"]) * correction
        return (state["m"] * rate + state["m_slow"] * slow_rate) / (root_mean_square + self.eps)

    def _alpha_now(self) -> Any:
        return self.alpha if self.alpha_steps is None else self._risen(self.alpha_steps) * self.alpha

    def _new_in_slow_mean(self) -> Any:
        """``1 - beta3``, of this step."""
        if self.beta3_steps is None:
            return 1 - self.beta3
        return self.once_a_step("new_in_slow_mean", lambda: -mx.expm1(self._log_beta3_now(self.beta3_steps)))

    def _log_beta3_now(self, steps: Any) -> mx.array:
        risen, last = self._risen(steps), log_of(self.beta3)
        return mx.minimum(1 / ((1 - risen) / log_of(self.betas[0]) + risen / last), last)

    def _risen(self, steps: Any) -> mx.array:
        return mx.minimum(self.step.astype(mx.float32) / steps, 1.0)


def _check_steps(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value} must be at least 1: use train.steps, or null for none")
    return value
