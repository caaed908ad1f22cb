"""Warmup, then a straight line down."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.schedule.warmup import check_final, progress, warmup, warmup_length


class Linear:
    """Warmup, then a straight line from the peak to ``final`` of it at ``steps``; ``final`` after that.

    The last step that is taken is ``steps - 1``, so with ``final=0`` no step is wasted on a learning rate of 0.

    Args:
        steps: Optimizer steps of the run.
        warmup_steps: Steps of linear warmup; None: a tenth of ``steps``, at most 1000.
        final: Fraction of the peak at the end, in [0, 1].

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: ``warmup_steps`` is negative or not below ``steps``, or ``final`` is outside [0, 1].

    Source: The default ``final=0``: S. Bergsma et al., 2025, Straight to Zero: Why Linearly Decaying the Learning Rate
        to Zero Works Best for LLMs, https://arxiv.org/abs/2502.15938.
    """

    def __init__(self, steps: int, warmup_steps: int | None = None, final: float = 0.0):
        self.steps = steps
        self.warmup_steps = self.decay_start = warmup_length(warmup_steps, steps)
        self.final = check_final(final)

    def __call__(self, step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        done = progress(step, self.warmup_steps, self.steps)
        return warmup(step, self.warmup_steps) * (1 - (1 - self.final) * done)
