"""The shapes that a cooldown can have."""

from __future__ import annotations

import math
from typing import Literal, get_args

import mlx.core as mx

from lmxexp.interfaces import ConfigError

Shape = Literal["linear", "cosine", "mirror_cosine", "sqrt", "square", "exponential"]
"""With ``x`` the part of the cooldown that is done, the part of the way down that is done:

=================  ======================================================================
``linear``         ``x``
``cosine``         ``(1 - cos(pi * x)) / 2``: slow at both ends
``mirror_cosine``  ``2 * x`` less the cosine's: fast at both ends, the cosine mirrored at the line
``sqrt``           ``sqrt(x)``: the learning rate goes as "1-sqrt", fast at first, slow at the end
``square``         ``x**2``: slow at first, fast at the end
``exponential``    none of its own: every step multiplies the learning rate by the same number
=================  ======================================================================
"""


def check_shape(shape: Shape, final: float) -> Shape:
    """``shape``, if it is one and comes to ``final``.

    Raises:
        ConfigError: There is no such shape, or an exponential is to come to 0.
    """
    shapes = get_args(Shape)
    if shape not in shapes:
        raise ConfigError(f"schedule.shape={shape} must be one of {', '.join(shapes)}")
    if shape == "exponential" and final == 0:
        raise ConfigError(
            f"schedule.final={final} is never reached by schedule.shape=exponential, which multiplies: "
            "try schedule.final=0.01, or another shape"
        )
    return shape


def cooldown(shape: Shape, done: mx.array, start: float, final: float) -> mx.array:
    """From ``start``, exactly, to ``final``, exactly, as ``done`` goes from 0 to 1.

    Args:
        shape: See `Shape`.
        done: Part of the cooldown that is done, in [0, 1]; float32.
        start, final: Factors, ``start >= final``; for an exponential above 0.

    Shapes: any, and the same comes back.

    Source: A. Haegele et al., 2024, Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations,
        https://arxiv.org/abs/2405.18392, section 3, and the code of its experiments, which has all six. What they do to
        the loss: A. Dremov et al., 2025, Training Dynamics of the Cooldown Stage in Warmup-Stable-Decay Learning Rate
        Scheduler, https://arxiv.org/abs/2508.01483.
    """
    if shape == "exponential":
        factor = mx.exp(done * math.log(final / start)) * start
    else:
        factor = start - (start - final) * _way_down(shape, done)
    return mx.where(done < 1, factor, final)


def _way_down(shape: Shape, done: mx.array) -> mx.array:
    """The part of the way down that is done."""
    cosine = (1 - mx.cos(done * math.pi)) * 0.5
    return {
        "linear": done,
        "cosine": cosine,
        "mirror_cosine": done * 2 - cosine,
        "sqrt": mx.sqrt(done),
        "square": done * done,
    }[shape]
