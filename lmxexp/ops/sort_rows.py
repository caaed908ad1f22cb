"""Sorting along the last axis, for any number of rows."""

from collections.abc import Callable

import mlx.core as mx

# MLX's CUDA kernels have a thread block a row along an axis of the grid that ends at 65,535, and fail beyond.
_MOST_ROWS = 32768


def sort_rows(x: mx.array) -> mx.array:
    """``mx.sort`` along the last axis."""
    return _in_pieces(lambda rows: mx.sort(rows, axis=-1), x)


def argsort_rows(x: mx.array) -> mx.array:
    """``mx.argsort`` along the last axis."""
    return _in_pieces(lambda rows: mx.argsort(rows, axis=-1), x)


def _in_pieces(sort: Callable[[mx.array], mx.array], x: mx.array) -> mx.array:
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) <= _MOST_ROWS:
        return sort(x)
    pieces = mx.split(rows, list(range(_MOST_ROWS, len(rows), _MOST_ROWS)))
    return mx.concatenate([sort(piece) for piece in pieces]).reshape(x.shape)
