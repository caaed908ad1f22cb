"""The root-mean-square norm, with a gradient in one kernel of our own where there is one; and the sums that it is of.

A residual stream is read, added to and normalised in every sublayer. On CUDA, in training, what `added` adds and the
norm of it are one kernel, and so are the gradients of the norm and of what goes on `beside` it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp.ops import rms_norm_kernels as kernels
from lmxexp.ops.own_gradient import own_gradient


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """``x / sqrt(mean(x ** 2) + eps) * weight``, over the last axis.

    Shapes:
        x ``(..., D)``, weight ``(D,)``; returns the shape of x.
    """
    if weight is None or own_gradient.plain or not is_ours(x, weight):
        return mx.fast.rms_norm(x, weight, eps)
    if not (_stream and _stream[0] is x):
        return cast(mx.array, _norm(eps)(x, weight))
    both = _norm_of_sum(eps)(*_sum[1:], weight) if _sum and _sum[0] is x else _branch(eps)(x, weight)
    _stream[0], y = cast(tuple[mx.array, mx.array], both)
    return y


_sum: list[mx.array] | None = None
"""Within `sums_with_norms`, the last sum and what it is of, or nothing; None outside."""


@contextmanager
def sums_with_norms() -> Iterator[None]:
    """Within, a sum that `added` made is computed with the norm that it goes on `beside`, if that comes next."""
    global _sum
    before, _sum = _sum, []
    try:
        yield
    finally:
        _sum = before


def added(x: mx.array, y: mx.array) -> mx.array:
    """``x + y``, of which a norm may come next.

    Shapes:
        any, both the same.
    """
    global _sum
    whole = x + y
    if _sum is not None:
        # Not used, it is never computed: the norm computes it anew, and what goes on beside the norm is that one.
        _sum = [whole, x, y] if x.shape == y.shape and x.dtype == y.dtype else []
    return whole


_stream: list[mx.array] = []
"""What is handed out by `beside`; empty outside."""


@contextmanager
def beside(x: mx.array) -> Iterator[list[mx.array]]:
    """For a residual stream ``x`` that goes on beside its norm: ``with beside(x) as stream: y = norm(x)``.

    Of the array that is in ``stream`` afterwards, and that is ``x``, the gradient is added to the norm's where that is
    computed. A context and no argument, as norms are whatever modules the configuration names.
    """
    global _stream
    before, _stream = _stream, [x]
    try:
        yield _stream
    finally:
        _stream = before


def is_ours(x: mx.array, weight: mx.array) -> bool:
    """Whether the norm has our kernels."""
    return kernels.take(x, weight)


@cache
def _norm(eps: float) -> own_gradient:
    whole = own_gradient(lambda x, weight: mx.fast.rms_norm(x, weight, eps))

    @whole.vjp
    def gradient(primals, cotangent, output):
        x, weight = primals
        return kernels.gradient(x, weight, cotangent, None, eps)

    return whole


@cache
def _branch(eps: float) -> own_gradient:
    whole = own_gradient(lambda x, weight: (x, mx.fast.rms_norm(x, weight, eps)))

    @whole.vjp
    def gradient(primals, cotangents, outputs):
        (x, weight), (beside, of_norm) = primals, cotangents
        return kernels.gradient(x, weight, of_norm, beside, eps)

    return whole


@cache
def _norm_of_sum(eps: float) -> own_gradient:
    whole = own_gradient(lambda x, y, weight: kernels.sum_and_norm(x, y, weight, eps))

    @whole.vjp
    def gradient(primals, cotangents, outputs):
        (*_, weight), (of_sum, of_norm) = primals, cotangents
        of_either, of_weight = kernels.gradient(outputs[0], weight, of_norm, of_sum, eps)
        return of_either, of_either, of_weight

    return whole
