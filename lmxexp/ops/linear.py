"""Linear layers, with a gradient of the weight that lies in memory as the weight does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops import small_product
from lmxexp.ops.own_gradient import own_gradient
from lmxexp.ops.replaced import replaced


@contextmanager
def gradients_in_rows() -> Iterator[None]:
    """Within, ``nn.Linear`` computes the same and its weight's gradient lies in rows.

    MLX's is a transposed view. What reads it beside the weight, as an optimizer does, then goes through memory in two
    orders at a time, and a kernel of ours is handed a copy. As the gradient is a product, it costs nothing to write it
    in the right order. A context and no layer of ours, so that a user's own modules are as fast.
    """
    with replaced(nn.Linear, "__call__", _linear):
        yield


def is_in_rows() -> bool:
    """Whether this is within `gradients_in_rows`, and ``nn.Linear`` is nothing else (as `lmxexp.model.recompute` may
    make it)."""
    return nn.Linear.__call__ is _linear


def product(x: mx.array, weight: mx.array, bias: mx.array | None = None) -> mx.array:
    """``x @ weight.T + bias``, the weight's gradient in rows.

    Shapes:
        x ``(..., D)``, weight ``(O, D)``, bias ``(O,)``; returns ``(..., O)``.
    """
    if bias is None and small_product.takes(x, weight):
        return small_product.product(x, weight)
    rows = mx.flatten(x, 0, -2) if x.ndim > 1 else x[None]
    y = _product(rows, weight) if bias is None else _product_with_bias(bias, rows, weight)
    return cast(mx.array, y).reshape(*x.shape[:-1], -1)


def _linear(layer: nn.Linear, x: mx.array) -> mx.array:
    return product(x, layer.weight, layer.get("bias"))


@own_gradient
def _product(x: mx.array, weight: mx.array) -> mx.array:
    """``(..., N, D)`` and ``(..., O, D)`` to ``(..., N, O)``."""
    return x @ mx.swapaxes(weight, -1, -2)


@_product.vjp
def _gradients(primals, cotangent, output):
    x, weight = primals
    return cotangent @ weight, mx.swapaxes(cotangent, -1, -2) @ x


_product.takes_leading_axes()


@own_gradient
def _product_with_bias(bias: mx.array, x: mx.array, weight: mx.array) -> mx.array:
    """The same with ``bias``, ``(..., O)``."""
    return mx.addmm(mx.expand_dims(bias, -2), x, mx.swapaxes(weight, -1, -2))


@_product_with_bias.vjp
def _gradients_and_of_bias(primals, cotangent, output):
    return cotangent.sum(axis=-2), *_gradients(primals[1:], cotangent, output)


_product_with_bias.takes_leading_axes()
