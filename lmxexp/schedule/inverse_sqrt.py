"""Warmup, then down as one over the square root of the step."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.schedule.warmup import warmup, warmup_length


class InverseSqrt:
    """Warmup, then the peak times ``sqrt((warmup_steps + 1) / (step + 1))``, without an end.

    Nothing in it but the default warmup depends on how long the run will be. Steps are counted from 0 here and from 1
    in the paper: with ``warmup_steps`` one less than the paper's, the factor is the paper's times ``sqrt(d_model *
    warmup_steps)``, which makes the peak 1.

    Args:
        steps: Optimizer steps of the run; the default warmup is a tenth of it.
        warmup_steps: Steps of linear warmup; None: a tenth of ``steps``, at most 1000. It also sets how fast the
            learning rate falls: to half of the peak when four times as many steps are done.

    Shapes: a scalar step of any number type to a float32 scalar factor.

    Raises:
        ConfigError: ``warmup_steps`` is negative or not below ``steps``.

    Source: A. Vaswani et al., 2017, Attention Is All You Need, https://arxiv.org/abs/1706.03762, equation 3.
        C. Raffel et al., 2020, Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer,
        https://arxiv.org/abs/1910.10683, section 3.1.2, hold the peak where Vaswani et al. and this schedule climb to
        it.
    """

    def __init__(self, steps: int, warmup_steps: int | None = None):
        self.warmup_steps = warmup_length(warmup_steps, steps)

    def __call__(self, step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        peak = self.warmup_steps + 1
        return warmup(step, self.warmup_steps) * mx.sqrt(peak / mx.maximum(step + 1, peak))
