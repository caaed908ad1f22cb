"""exp, and what is made of it: MLX's own, but where that is slow.

On x86 MLX computes exp one number at a time, 12 ns each, forty times as long as a product; so do its sigmoid, softmax
and logsumexp. There the functions below are made of operations that a C++ compiler makes vectors of, in fp32, with a
relative error of 2e-7 (MLX's: 4e-6). Everywhere else, and in every other type, they are MLX's.
"""

import math
import platform

import mlx.core as mx
import mlx.nn as nn

from lmxexp import device
from lmxexp.ops.own_gradient import own_gradient

LOWEST, _HIGHEST = -87.0, 88.0
"""Below, and above, exp is no normal fp32 number."""

_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
"""Their sum is ln 2; a small whole number times the first is exact."""

_TO_WHOLE = 1.5 * 2.0**23
"""Added, it rounds to a whole number, which then stands in the low bits."""

_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""Of ``(exp(r) - 1 - r) / r**2`` for ``|r|`` up to ``ln(2) / 2``, the highest power first. Source: S. Moshier, Cephes
mathematical library, expf."""

LARGEST = 2**20
"""Numbers of which a softmax or logsumexp is ours. Its intermediate results take ten times their memory, which would be
the peak of a step whose batch is computed in parts to save memory."""


def is_slow() -> bool:
    """Whether MLX's own is."""
    return platform.machine().lower() in ("x86_64", "amd64") and not device.is_gpu()


def silu(x: mx.array) -> mx.array:
    """``x * sigmoid(x)``."""
    return x * _sigmoid(x) if is_ours(x) else nn.silu(x)


def sigmoid(x: mx.array) -> mx.array:
    """``1 / (1 + exp(-x))``."""
    return _sigmoid(x) if is_ours(x) else mx.sigmoid(x)


def softmax(x: mx.array) -> mx.array:
    """Over the last axis. Of a score of minus infinity it is 0."""
    return _softmax(x) if is_ours(x, LARGEST) else mx.softmax(x, axis=-1)


def logsumexp(x: mx.array) -> mx.array:
    """Over the last axis, which is gone.

    Shapes:
        ``(..., V)`` to ``(...)``.
    """
    return _logsumexp(x) if is_ours(x, LARGEST) else mx.logsumexp(x, axis=-1)


def is_ours(x: mx.array, largest: float = math.inf) -> bool:
    """Whether what is made of x is computed here."""
    # Traced, MLX's stand for ours: the sizes are the same.
    return x.dtype == mx.float32 and x.size <= largest and is_slow() and not own_gradient.plain


@own_gradient
def _sigmoid(x: mx.array) -> mx.array:
    return 1.0 / (1.0 + exp_within(mx.minimum(mx.maximum(-x, LOWEST), _HIGHEST)))


@_sigmoid.vjp
def _sigmoid_gradient(_: mx.array, gradient: mx.array, s: mx.array) -> mx.array:
    return gradient * (s * (1.0 - s))


@own_gradient
def _softmax(x: mx.array) -> mx.array:
    e = _exp_of_difference(x, x.max(axis=-1, keepdims=True))
    return e * _along(1.0 / e.sum(axis=-1, keepdims=True), e)


@_softmax.vjp
def _softmax_gradient(_: mx.array, gradient: mx.array, p: mx.array) -> mx.array:
    return p * (gradient - _along((p * gradient).sum(axis=-1, keepdims=True), p))


@own_gradient
def _logsumexp(x: mx.array) -> mx.array:
    highest = x.max(axis=-1, keepdims=True)
    return (mx.log(_exp_of_difference(x, highest).sum(axis=-1, keepdims=True)) + highest).squeeze(-1)


@_logsumexp.vjp
def _logsumexp_gradient(x: mx.array, gradient: mx.array, log_z: mx.array) -> mx.array:
    return _exp_of_difference(x, log_z[..., None]) * _along(gradient[..., None], x)


for _function in (_sigmoid, _softmax, _logsumexp):
    _function.takes_leading_axes()


def _exp_of_difference(x: mx.array, highest: mx.array) -> mx.array:
    """``exp(x - highest)``, of which nothing is above 1 (but for rounding)."""
    difference = x - _along(highest, x)
    return mx.where(difference < LOWEST, 0.0, exp_within(mx.maximum(difference, LOWEST)))


def _along(column: mx.array, x: mx.array) -> mx.array:
    """One number for each row as an array of ``x``'s shape: a copy, as a kernel that repeats an operand is no vector
    code."""
    return mx.contiguous(mx.broadcast_to(column, x.shape))


def exp_within(x: mx.array) -> mx.array:
    """Of fp32 numbers within the bounds: ``2**k * exp(r)`` with ``x = k * ln(2) + r``. What is no number stays none."""
    shifted = x * (1.0 / math.log(2.0)) + _TO_WHOLE
    k = shifted - _TO_WHOLE
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    p = r * _POLYNOMIAL[0] + _POLYNOMIAL[1]
    for coefficient in _POLYNOMIAL[2:]:
        p = p * r + coefficient
    # The low bits of `shifted` are k: moved to where fp32 has its exponent, they are 2**k.
    power = mx.view(mx.view(shifted, mx.int32) * 2**23 + 127 * 2**23, mx.float32)
    return (p * (r * r) + r + 1.0) * power
