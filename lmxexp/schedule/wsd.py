"""Warmup, a stable stretch at the peak, then a short cooldown."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.schedule.shapes import Shape, check_shape, cooldown
from lmxexp.schedule.warmup import check_final, progress, warmup, warmup_length


class WSD:
    """Warmup, the peak for most of the run, then a cooldown to ``final`` of it at ``steps`` (warmup-stable-decay).

    Unlike a cosine, nothing before the cooldown depends on how long the run will be: ``schedule=cooldown`` branches off
    a run that is there already.

    Args:
        steps: Optimizer steps of the run.
        warmup_steps: Steps of linear warmup; None: a tenth of ``steps``, at most 1000.
        decay_fraction: Length of the cooldown as a fraction of ``steps``, in (0, 1]; at least one step.
        final: Fraction of the peak at the end, in [0, 1]; above 0 for an exponential.
        shape: Of the cooldown, see `lmxexp.schedule.shapes.Shape`.

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: A setting is outside its range, or warmup and cooldown together are longer than the run.

    Source: The three stages: S. Hu et al., 2024, MiniCPM, https://arxiv.org/abs/2404.06395, section 4, with an
        exponential cooldown. The default shape ("1-sqrt") and length: A. Haegele et al., 2024, Scaling Laws and
        Compute-Optimal Training Beyond Fixed Training Durations, https://arxiv.org/abs/2405.18392, section 3.
    """

    def __init__(
        self,
        steps: int,
        warmup_steps: int | None = None,
        decay_fraction: float = 0.2,
        final: float = 0.0,
        shape: Shape = "sqrt",
    ):
        self.steps = steps
        self.warmup_steps = warmup_length(warmup_steps, steps)
        self.final = check_final(final)
        self.shape: Shape = check_shape(shape, final)
        if not 0 < decay_fraction <= 1:
            raise ConfigError(
                f"schedule.decay_fraction={decay_fraction} must lie in (0, 1]: it is the cooldown's part of the run; "
                "for no cooldown use schedule=constant"
            )
        self.decay_start = steps - max(1, round(decay_fraction * steps))
        if self.decay_start < self.warmup_steps:
            raise ConfigError(
                f"schedule.decay_fraction={decay_fraction} of {steps} steps starts the cooldown at step "
                f"{self.decay_start}, within the {self.warmup_steps} steps of schedule.warmup_steps: lower one of them"
            )

    def __call__(self, step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        done = progress(step, self.decay_start, self.steps)
        return warmup(step, self.warmup_steps) * cooldown(self.shape, done, 1.0, self.final)
