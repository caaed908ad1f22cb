"""Grouped matrix products: each row by the matrix of its own expert, without a capacity that could overflow.

Rows are copied once per chosen expert, sorted by expert, multiplied, and put back. The gradients of the two moves are
written as moves too: MLX's own would add rows in whatever order a GPU's threads arrive.
"""

from typing import NamedTuple, cast

import mlx.core as mx

from lmxexp.ops.own_gradient import own_gradient


class Order(NamedTuple):
    """The copies of all tokens, sorted by expert."""

    experts: mx.array
    """``(T k,)``, ascending: the expert of each copy."""
    source: mx.array
    """``(T k,)``: which of the copies, counted token by token, stands here."""
    place: mx.array
    """``(T k,)``: where each copy stands; the inverse of ``source``."""


def sort_by_expert(indices: mx.array) -> Order:
    """The order in which copies stand side by side with those for the same expert.

    Shapes:
        ``(T, k)`` expert of each copy.
    """
    flat = mx.stop_gradient(indices).reshape(-1)
    source = mx.argsort(flat)
    return Order(flat[source], source, mx.argsort(source))


def copy_to_experts(x: mx.array, order: Order) -> mx.array:
    """Tokens ``(T, D)`` to copies ``(T k, D)``, sorted."""
    return cast(mx.array, _copy(x, order.source, order.place))


def bring_back(rows: mx.array, order: Order) -> mx.array:
    """Sorted copies ``(T k, D)`` to the order of the tokens, ``k`` copies each, one after the other."""
    return cast(mx.array, _permute(rows, order.place, order.source))


def grouped_matmul(rows: mx.array, weight: mx.array, experts: mx.array) -> mx.array:
    """``rows[i] @ weight[experts[i]].T``.

    Args:
        experts: ascending; the CUDA kernel knows no other order.

    Shapes:
        rows ``(N, I)``, weight ``(E, O, I)``, experts ``(N,)``; returns ``(N, O)`` in the type of the rows.

    Cost:
        ``2 N O I`` FLOPs.
    """
    dtype = rows.dtype
    if mx.default_device() == mx.cpu:  # where the product knows fp32 only
        rows, weight = rows.astype(mx.float32), weight.astype(mx.float32)
    n, width = rows.shape
    # `rows[:, None]` is the same, but its strides are not, and the CUDA kernel multiplies something else.
    y = mx.gather_mm(rows.reshape(n, 1, width), weight.swapaxes(-1, -2), rhs_indices=experts, sorted_indices=True)
    return y.reshape(n, -1).astype(dtype)


@own_gradient
def _copy(x: mx.array, source: mx.array, place: mx.array) -> mx.array:
    return x[source // (source.size // x.shape[0])]


@_copy.vjp
def _copy_vjp(primals, cotangent, output):
    x, source, place = primals
    return cotangent[place].reshape(x.shape[0], -1, x.shape[1]).sum(axis=1), mx.zeros_like(source), mx.zeros_like(place)


@_copy.vmap
def _copy_of_several(inputs, axes):
    return _as_one(_copy, inputs, axes)


@own_gradient
def _permute(rows: mx.array, order: mx.array, inverse: mx.array) -> mx.array:
    return rows[order]


@_permute.vjp
def _permute_vjp(primals, cotangent, output):
    _, order, inverse = primals
    return cotangent[inverse], mx.zeros_like(order), mx.zeros_like(inverse)


@_permute.vmap
def _permute_of_several(inputs, axes):
    return _as_one(_permute, inputs, axes)


def _as_one(move, inputs, axes):
    """What is mapped over stands one after another, as if it were more tokens; or the gradient would be MLX's own."""
    n = next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
    rows, *orders = (
        mx.broadcast_to(x, (n, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
        for x, axis in zip(inputs, axes, strict=True)
    )
    n_copies = orders[0].shape[1]
    first = (mx.arange(n) * n_copies).astype(orders[0].dtype)[:, None]
    moved = move(mx.flatten(rows, 0, 1), *((order + first).reshape(-1) for order in orders))
    return mx.unflatten(moved, 0, (n, n_copies)), 0
