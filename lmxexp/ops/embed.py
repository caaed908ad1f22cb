"""Looking rows up in a table, with a gradient that is the same every time."""

import math
from typing import cast

import mlx.core as mx

from lmxexp.ops.own_gradient import own_gradient

ONE_HOT_LIMIT = 1 << 26
"""Largest ids x rows for which the gradient is a matrix product: 128 MB of one-hot vectors in bf16."""


def embed(table: mx.array, ids: mx.array) -> mx.array:
    """Rows of ``table``.

    On a GPU, MLX's own gradient adds the rows of equal ids in whatever order its threads arrive, so two runs from one
    state drift apart in the last digits. There the gradient is computed by `sum_rows`; on a CPU it is exact as it is.

    Shapes:
        table ``(V, D)``, ids ``(...)`` int; returns ``(..., D)``.
    """
    return cast(mx.array, _embed(table, ids)) if mx.default_device() == mx.gpu else table[ids]


def sum_rows(rows: mx.array, ids: mx.array, n: int) -> mx.array:
    """The sum of the rows of each id, always added in the same order.

    For a small table as a product with one-hot vectors. For a large one, sorted by id and summed by doubling steps
    within each run of equal ids (Hillis & Steele 1986, "Data Parallel Algorithms"), in fp32.

    Shapes:
        rows ``(T, D)``, ids ``(T,)`` int in [0, n); returns ``(n, D)`` in the type of the rows.

    Cost:
        Linear in T times log T; 3.0 ms for 32,768 rows of 768 and 50,304 ids on an H200, where the unordered sum
        takes 1.1 ms.
    """
    if ids.size * n <= ONE_HOT_LIMIT:
        one_hot = (ids[None] == mx.arange(n)[:, None]).astype(rows.dtype)
        return one_hot @ rows
    order = mx.argsort(ids)
    ids, sums = ids[order], rows[order].astype(mx.float32)
    for i in range(math.ceil(math.log2(ids.size))):
        reach = 1 << i
        same = (ids[reach:] == ids[:-reach])[:, None]
        sums = mx.concatenate([sums[:reach], sums[reach:] + mx.where(same, sums[:-reach], 0.0)])
    last_of_its_run = mx.concatenate([ids[1:] != ids[:-1], mx.array([True])])
    table = mx.zeros((n + 1, rows.shape[1]), mx.float32)
    table[mx.where(last_of_its_run, ids, n)] = sums  # every row but the last lands on the spare one
    return table[:n].astype(rows.dtype)


@own_gradient
def _embed(table: mx.array, ids: mx.array) -> mx.array:
    return table[ids]


@_embed.vjp
def _embed_vjp(primals, cotangent, output):
    table, ids = primals
    rows = cotangent.reshape(-1, table.shape[1])
    return sum_rows(rows, ids.reshape(-1), table.shape[0]), mx.zeros_like(ids)


@_embed.vmap
def _embed_of_several(inputs, axes):
    # Or the gradient of what is mapped would be MLX's own.
    n = next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
    own = (
        mx.broadcast_to(x, (n, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
        for x, axis in zip(inputs, axes, strict=True)
    )
    return _of_several(*own), 0


_of_several = own_gradient(mx.vmap(_embed.function))


@_of_several.vjp
def _of_several_vjp(primals, cotangent, output):
    return mx.vmap(_embed_vjp, in_axes=((0, 0), 0, 0))(primals, cotangent, output)
