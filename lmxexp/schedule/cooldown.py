"""Down from where another run stands."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.schedule.shapes import Shape, check_shape, cooldown
from lmxexp.schedule.warmup import check_final, progress


class Cooldown:
    """The cooldown of a run that branches off another's checkpoint (``branch=RUN_DIR``).

    One long run at a constant learning rate, and a cooldown from each of several of its checkpoints, come to what as
    many whole runs with ``schedule=wsd`` would. The learning rate goes from what it is at the branch to ``final`` of
    the peak after ``cooldown_steps``. There is no warmup: the other run has had it.

    Args:
        steps: Optimizer steps of the run, those before the branch included: ``start + cooldown_steps``, which a
            branch sets by itself.
        cooldown_steps: Length of the cooldown; its last step is the run's.
        start: Steps before the branch; None: there is no branch, which is refused.
        factor: The learning rate at the branch as a fraction of the peak, above ``final``.
        shape: Of the way down, see `lmxexp.schedule.shapes.Shape`.
        final: Fraction of the peak at the end, in [0, 1].

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: There is no branch, a setting is outside its range, or the cooldown does not end with the run.

    Source: A. Haegele et al., 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations,
        https://arxiv.org/abs/2405.18392, section 3.
    """

    def __init__(
        self,
        steps: int,
        cooldown_steps: int,
        start: int | None = None,
        factor: float | None = None,
        shape: Shape = "sqrt",
        final: float = 0.0,
    ):
        if start is None or factor is None:
            raise ConfigError(
                "schedule=cooldown goes down from where another run stands: say which, branch=RUN_DIR; "
                "for a run with a cooldown of its own use schedule=wsd"
            )
        if cooldown_steps < 1:
            raise ConfigError(
                f"schedule.cooldown_steps={cooldown_steps} must be at least 1: it is the number of steps from the "
                "branch to the end of the run"
            )
        if start + cooldown_steps != steps:
            raise ConfigError(
                f"schedule.cooldown_steps={cooldown_steps} from step {start} on ends at step {start + cooldown_steps}, "
                f"and train.steps={steps}: set train.steps={start + cooldown_steps}, or "
                f"schedule.cooldown_steps={steps - start}"
            )
        self.decay_start, self.steps, self.factor = start, steps, factor
        self.final = check_final(final)
        self.shape: Shape = check_shape(shape, final)
        if not final < factor:
            raise ConfigError(
                f"schedule.final={final} must be below the learning rate at the branch, which is {factor:g} of the "
                "peak: lower it, or branch off at another step"
            )

    def __call__(self, step: mx.array) -> mx.array:
        done = progress(step.astype(mx.float32), self.decay_start, self.steps)
        return cooldown(self.shape, done, self.factor, self.final)
