"""The linear warmup that every schedule starts with."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import ConfigError


def warmup_length(warmup_steps: int | None, steps: int) -> int:
    """The number of warmup steps: the one that is set, or a tenth of the run.

    Args:
        warmup_steps: What the user set; None: a tenth of ``steps``, rounded down, at most 1000.
        steps: Optimizer steps of the run.

    Raises:
        ConfigError: ``steps`` is no positive number, or ``warmup_steps`` is negative or leaves no step after it.
    """
    if steps < 1:
        raise ConfigError(f"schedule.steps={steps} must be at least 1: set train.steps, which it follows")
    if warmup_steps is None:
        return min(steps // 10, 1000)
    if warmup_steps < 0:
        raise ConfigError(f"schedule.warmup_steps={warmup_steps} must not be negative: use 0 for no warmup")
    if warmup_steps >= steps:
        raise ConfigError(
            f"schedule.warmup_steps={warmup_steps} must be below schedule.steps={steps}: lower it, raise train.steps, "
            "or leave warmup_steps at null for a tenth of the run"
        )
    return warmup_steps


def warmup(step: mx.array, warmup_steps: int) -> mx.array:
    """The factor of the warmup alone: a straight line up to 1, then 1 for good.

    ``(step + 1) / (warmup_steps + 1)`` before ``warmup_steps``, so that the first step, 0, is not wasted on a factor
    of 0 and step ``warmup_steps`` is the first at the peak. Schedules multiply by it.

    Args:
        step: Steps done before this one; float32.
        warmup_steps: Length of the warmup; 0: none.

    Shapes: any, and the same comes back.

    Source: A. Karpathy, nanoGPT, train.py, ``get_lr``, https://github.com/karpathy/nanoGPT.
    """
    return mx.minimum((step + 1) / (warmup_steps + 1), 1.0)


def progress(step: mx.array, start: int, end: int) -> mx.array:
    """How far ``step`` is from ``start`` (0, and before it) to ``end`` (1, and after it).

    Args:
        step: Steps done before this one; float32.
        start, end: Steps, ``start < end``.

    Shapes: any, and the same comes back.
    """
    return mx.clip((step - start) / (end - start), 0.0, 1.0)


def check_final(final: float) -> float:
    """``final``, if it is a fraction of the peak.

    Raises:
        ConfigError: It lies outside [0, 1].
    """
    if not 0 <= final <= 1:
        raise ConfigError(f"schedule.final={final} must lie in [0, 1]: it is a fraction of the peak learning rate")
    return final
