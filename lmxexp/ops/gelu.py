"""The Gaussian error linear unit: MLX's own, but where that is slow (see `lmxexp.ops.exp`)."""

import math
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops import exp
from lmxexp.ops.own_gradient import own_gradient

_NUMERATOR = (2.0420253163e-6, 2.8480583474e-4, 3.7794153126e-3, 5.2789682012e-2, 1.9077907990e-1, 1.1283791454)
_DENOMINATOR = (3.8004502617e-5, 1.1651689448e-3, 1.4997043759e-2, 1.1425558128e-1, 5.0240627762e-1, 1.0)
"""Of ``erf(x) / x`` in powers of ``x**2``, the highest first, fitted to a relative error of 2e-8 for ``|x|`` up to 3.93
(in fp32 it is 4e-7). Beyond, erf is 1."""

_ALL = 3.92


def gelu(x: mx.array) -> mx.array:
    """``x`` times the probability of a normal number below it.

    Source: Hendrycks & Gimpel 2016, "Gaussian Error Linear Units (GELUs)".
    """
    return cast(mx.array, _gelu(x)) if exp.is_ours(x) else nn.gelu(x)


def gelu_tanh(x: mx.array) -> mx.array:
    """Its approximation by a tanh, which is a sigmoid of twice the argument."""
    if not exp.is_ours(x):
        return nn.gelu_approx(x)
    return x * exp.sigmoid(x * (x * x * (2 * 0.044715) + 2) * math.sqrt(2 / math.pi))


@own_gradient
def _gelu(x: mx.array) -> mx.array:
    return x * _below(x)


@_gelu.vjp
def _gelu_gradient(x: mx.array, gradient: mx.array, _: mx.array) -> mx.array:
    # A dependency, or the compiler would keep what both passes have in common, and fuse neither.
    x = mx.depends(x, gradient)
    density = exp.exp_within(mx.maximum(x * x * -0.5, exp.LOWEST)) * (1 / math.sqrt(2 * math.pi))
    return gradient * (_below(x) + x * density)


_gelu.takes_leading_axes()


def _below(x: mx.array) -> mx.array:
    """The probability of a normal number below ``x``."""
    return _erf(x * math.sqrt(0.5)) * 0.5 + 0.5


def _erf(x: mx.array) -> mx.array:
    square = mx.minimum(x * x, _ALL * _ALL)
    top, bottom = square * _NUMERATOR[0] + _NUMERATOR[1], square * _DENOMINATOR[0] + _DENOMINATOR[1]
    for a, b in zip(_NUMERATOR[2:], _DENOMINATOR[2:], strict=True):
        top, bottom = top * square + a, bottom * square + b
    return mx.where(mx.abs(x) < _ALL, x * top / bottom, mx.sign(x))
