"""Up to the peak and down again, once."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.schedule.warmup import check_final, progress, warmup_length

Annealing = Literal["cosine", "linear"]


class OneCycle:
    """From ``initial`` up to the peak, then down to ``final`` at the last step, ``steps - 1``; ``final`` after that.

    The rise is the warmup of the other schedules, but for where it starts and its curve. With three phases the
    learning rate falls as long as it rose, back to ``initial``, and in what is left to ``final``.

    Args:
        steps: Optimizer steps of the run.
        warmup_steps: Steps of the rise; the step of this number is the one at the peak. None: PyTorch's, which is
            ``0.3 * steps - 1``, rounded.
        initial: Fraction of the peak at the first step, in (0, 1].
        final: Fraction of the peak at the last step, in [0, 1].
        annealing: The curve from one to the next: half a cosine, or a straight line.
        phases: 2, or 3.

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: A setting is outside its range, or three phases do not fit into ``steps``.

    Source: L. N. Smith, 2018, A Disciplined Approach to Neural Network Hyper-Parameters, Part 1,
        https://arxiv.org/abs/1803.09820: three phases of straight lines. The two phases, the cosine and
        the defaults are those of PyTorch's ``OneCycleLR``, whose learning rate this is with ``pct_start =
        (warmup_steps + 1) / steps``, ``div_factor = 1 / initial`` and ``final_div_factor = initial / final``; the
        momentum, which goes the other way there, stays what the optimizer's is.
    """

    def __init__(
        self,
        steps: int,
        warmup_steps: int | None = None,
        initial: float = 0.04,
        final: float = 4e-6,
        annealing: Annealing = "cosine",
        phases: Literal[2, 3] = 2,
    ):
        default = max(0, round(0.3 * steps) - 1)
        self.warmup_steps = self.decay_start = warmup_length(default if warmup_steps is None else warmup_steps, steps)
        if not 0 < initial <= 1:
            raise ConfigError(
                f"schedule.initial={initial} must lie in (0, 1]: it is the fraction of the peak learning rate at the "
                "first step, which 0 would waste"
            )
        if annealing not in ("cosine", "linear"):
            raise ConfigError(f"schedule.annealing={annealing} must be cosine or linear")
        if phases not in (2, 3):
            raise ConfigError(f"schedule.phases={phases} must be 2 or 3")
        if phases == 3 and not 1 <= self.warmup_steps < (steps - 1) / 2:
            raise ConfigError(
                f"schedule.phases=3 rises and falls in {self.warmup_steps} steps each (schedule.warmup_steps), which "
                f"must be at least 1 and leave some of {steps} for the third: change it, or raise train.steps"
            )
        self.initial, self.final, self.annealing = initial, check_final(final), annealing
        corners = [(0, initial), (self.warmup_steps, 1.0)]
        if phases == 3:
            corners.append((2 * self.warmup_steps, initial))
        self.corners = [*corners, (max(steps - 1, corners[-1][0] + 1), self.final)]
        """Steps, and the factors there."""

    def __call__(self, step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        factor = mx.full(step.shape, self.initial)
        for (start, before), (end, after) in pairwise(self.corners):
            if end > start:
                factor = mx.where(step > start, self._between(before, after, progress(step, start, end)), factor)
            else:  # no rise: it starts at the peak
                factor = mx.full(step.shape, after)
        return factor

    def _between(self, before: float, after: float, done: mx.array) -> mx.array:
        way = done if self.annealing == "linear" else 0.5 * (1 - mx.cos(math.pi * done))
        return mx.where(done < 1, before + (after - before) * way, after)
