"""Several linear layers of one input."""

from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops import cuda
from lmxexp.ops.own_gradient import own_gradient


def projections(x: mx.array, layers: Sequence[nn.Module]) -> Sequence[mx.array]:
    """``[layer(x) for layer in layers]``.

    On CUDA each product of the input's gradient is added to the last as it is written, where MLX writes all of them and
    then adds them up, which for arrays this large takes as long as a norm.

    Shapes:
        x ``(..., D)``; returns ``(..., N)`` each.
    """
    if not is_ours(x, layers):
        return [layer(x) for layer in layers]
    return cast(Sequence[mx.array], _products(x, *(layer["weight"] for layer in layers)))


def is_ours(x: mx.array, layers: Sequence[nn.Module]) -> bool:
    """Whether the gradient is that of this module."""
    return cuda.usable() and all(
        type(layer) is nn.Linear and "bias" not in layer and layer.weight.dtype == x.dtype for layer in layers
    )


@own_gradient
def _products(x: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
    return tuple(x @ w.T for w in weights)


@_products.vjp
def _gradients(primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Any) -> tuple[mx.array, ...]:
    x, *weights = primals
    rows = x.reshape(-1, x.shape[-1])
    of_outputs = [g.reshape(-1, g.shape[-1]) for g in cotangents]
    of_x = of_outputs[0] @ weights[0]
    for g, w in zip(of_outputs[1:], weights[1:], strict=True):
        of_x = mx.addmm(of_x, g, w)
    return of_x.reshape(x.shape), *((rows.T @ g).T for g in of_outputs)
