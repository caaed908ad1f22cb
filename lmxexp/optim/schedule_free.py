"""Schedule-free optimizers: an average of the iterates in the place of a falling learning rate."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_map_with_path

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.ops.once import once
from lmxexp.optim.adam import Adam
from lmxexp.optim.checks import check_weight_decay
from lmxexp.optim.full_precision import FullPrecision, zeros
from lmxexp.optim.roles import is_matrix

SMALLEST = 1e-38
"""Just below the smallest number that fp32 holds with all its digits."""


class ScheduleFree(FullPrecision):
    """What schedule-free optimizers share: gradients at ``y``, steps of ``z``, and the average ``x`` to evaluate with.

    A subclass says how far ``z`` moves (`change`) and how much of the average is in ``y`` (`share_of_average`). The
    parameters that are trained are ``y = (1 - beta) * z + beta * x``; `evaluated` gives ``x``, which is not stored but
    found from ``y`` and ``z``. Parameters in bf16 alone would lose it; `train.precision=mixed` keeps them in fp32.

    ``x`` is the mean of all ``z`` so far, each with the square of its step's learning rate as weight. The weight decay
    acts at ``y``, and moves ``z``.

    Shapes: beside what `FullPrecision` says, the state has ``weight_sum`` and ``weight_sum_rest``, fp32 scalars: the
    sum of all weights, and what was lost to rounding when the last was added.

    Source: A. Defazio et al., 2024, The Road Less Scheduled, https://arxiv.org/abs/2405.15682, equations 3 to 5 and
        algorithm 1. The authors' code weighs with the largest learning rate so far instead of the step's; that is the
        same while learning rates do not fall.
    """

    moves = None  # where gradients are taken, by less than the learning rate

    def share_of_average(self) -> Any:
        """``beta``, a number above 0 and below 1: how much of ``x`` is in ``y``."""
        raise NotImplementedError

    def init(self, parameters: dict) -> None:
        for name in ("weight_sum", "weight_sum_rest"):
            self.state.setdefault(name, mx.array(0.0))
        super().init(parameters)

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        state["z"] = parameter.astype(mx.float32)
        super().init_single(parameter, state)

    def evaluated(self, parameters: dict) -> dict:
        """The average ``x``; see `lmxexp.optim.averaging.Averaging`."""
        beta = self.share_of_average()

        def average(_: str, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
            y = parameter.astype(mx.float32)
            return ((y - state["z"] * (1 - beta)) / beta).astype(parameter.dtype)

        return cast(dict, tree_map_with_path(average, parameters, self.state))

    def _apply(self, path: str, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        y, z = parameter.astype(mx.float32), state["z"]
        change = self.change(gradient.astype(mx.float32), y, state)
        if self.weight_decay and is_matrix(path, parameter):
            change = change + y * (self.learning_rate * self.weight_decay)
        state["z"] = z - change
        # The new y, with the old x found from the old y: that x is nowhere divided by beta, so that nothing adds up.
        new = self.once_a_step("new", self._weight_of_new)
        ahead = self.once_a_step("ahead", lambda: 1 - (1 - new) * self.share_of_average())
        return (y - ((y - z) * new + change * ahead)).astype(parameter.dtype)

    def _weight_of_new(self) -> mx.array:
        """How much the newest ``z`` counts in the average, a scalar; adds its weight to the sum.

        The sum is kept with what rounding took from it: after n steps a weight is but an n-th of it.
        """
        state = self.state
        weight = mx.square(self.learning_rate)
        added = once(weight - state["weight_sum_rest"])
        total = once(state["weight_sum"] + added)
        state["weight_sum_rest"] = once(once(total - state["weight_sum"]) - added)
        state["weight_sum"] = total
        return weight / mx.maximum(total, SMALLEST)  # a schedule may begin at 0


class ScheduleFreeSGD(ScheduleFree):
    """Stochastic gradient descent whose momentum is an interpolation with the average of its iterates.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar. Not to fall: ``schedule=constant``.
        momentum: How much of the average is in the parameters that are trained, in (0, 1).
        weight_decay: Of matrices, see `lmxexp.optim.roles`; at the parameters that are trained.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `ScheduleFree`; equations 3 to 5 with the warmup's weights.
    """

    elementwise = True

    def __init__(self, learning_rate: float | Schedule, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(learning_rate, weight_decay)
        self.momentum = _check_share("momentum", momentum, momentum)

    def share_of_average(self) -> Any:
        return self.momentum

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        return gradient * self.learning_rate


class ScheduleFreeAdamW(ScheduleFree, Adam):
    """AdamW whose first moment is replaced by an interpolation with the average of its iterates.

    Two arrays of state, as AdamW.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar. Not to fall: ``schedule=constant``.
        betas: How much of the average is in the parameters that are trained, in (0, 1), and how much of the gradient's
            mean square stays at each step, in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Of matrices, see `lmxexp.optim.roles`; at the parameters that are trained.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `ScheduleFree`; algorithm 1.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps)
        _check_share("betas", betas[0], list(betas))
        self.weight_decay = check_weight_decay(weight_decay)

    def share_of_average(self) -> Any:
        return self.betas[0]

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"v": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta2 = self.betas[1]
        state["v"] = state["v"] * beta2 + mx.square(gradient) * (1 - beta2)
        correction = self.once_a_step("correction", lambda: mx.rsqrt(self._weight_so_far(beta2)))
        return gradient * self.learning_rate / (mx.sqrt(state["v"]) * correction + self.eps)


def _check_share(name: str, share: float, value: object) -> float:
    """``share``, if it lies in (0, 1): without any of the average in it, the average could not be found from ``y``."""
    if not 0 < share < 1:
        which = "" if share is value else "'s first number"
        raise ConfigError(f"{name}={value}{which} must lie in (0, 1), above 0 and below 1: try 0.9")
    return share
