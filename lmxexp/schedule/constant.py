"""Warmup, then the peak to the end."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.schedule.warmup import warmup, warmup_length


class Constant:
    """Warmup, then the peak learning rate to the end.

    Args:
        steps: Optimizer steps of the run; the default warmup is a tenth of it.
        warmup_steps: Steps of linear warmup; None: a tenth of ``steps``, at most 1000.

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: ``warmup_steps`` is negative or not below ``steps``.
    """

    def __init__(self, steps: int, warmup_steps: int | None = None):
        self.warmup_steps = warmup_length(warmup_steps, steps)

    def __call__(self, step: mx.array) -> mx.array:
        return warmup(step.astype(mx.float32), self.warmup_steps)
