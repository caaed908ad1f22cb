"""Warmup, then half a cosine down."""

from __future__ import annotations

import math

import mlx.core as mx

from lmxexp.schedule.warmup import check_final, progress, warmup, warmup_length


class Cosine:
    """Warmup, then half a cosine from the peak to ``final`` of it at ``steps``; ``final`` after that.

    Args:
        steps: Optimizer steps of the run.
        warmup_steps: Steps of linear warmup; None: a tenth of ``steps``, at most 1000.
        final: Fraction of the peak at the end, in [0, 1].

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: ``warmup_steps`` is negative or not below ``steps``, or ``final`` is outside [0, 1].

    Source: I. Loshchilov and F. Hutter, 2017, SGDR: Stochastic Gradient Descent with Warm Restarts,
        https://arxiv.org/abs/1608.03983, equation 5, without restarts; the end and the warmup as in A. Karpathy,
        nanoGPT, train.py, ``get_lr``.
    """

    def __init__(self, steps: int, warmup_steps: int | None = None, final: float = 0.1):
        self.steps = steps
        self.warmup_steps = self.decay_start = warmup_length(warmup_steps, steps)
        self.final = check_final(final)

    def __call__(self, step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        done = progress(step, self.warmup_steps, self.steps)
        decay = self.final + (1 - self.final) * 0.5 * (1 + mx.cos(math.pi * done))
        return warmup(step, self.warmup_steps) * decay
