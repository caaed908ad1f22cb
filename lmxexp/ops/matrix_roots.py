"""What preconditioners are made of: inverse roots, orthonormal bases, and whose turn it is.

MLX decomposes matrices on the CPU alone. So what products can do is done by products, on whatever device the step runs
on: inverse roots by a coupled Newton iteration, and of orthonormal columns all but small blocks of Cholesky factors
(`lmxexp.ops.cholesky`). (The polar factor, products alone, leaves a basis as it is.) Nothing here raises or loops
without end: beside what could fail stands a measure of it, so that the caller can keep what it had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import mlx.core as mx

from lmxexp.ops.cholesky import inverse_cholesky, inverse_cholesky_flops
from lmxexp.ops.once import once

# Once the smallest eigenvalue has grown to about one, its error is squared by every iteration.
_LAST_ITERATIONS = 6

SMALLEST_DAMPING = 1e-7
"""Of `inverse_root`: fp32 has no more digits."""


def inverse_root(matrix: mx.array, root: int, damping: float) -> tuple[mx.array, mx.array]:
    """``(A + damping |A| I)^(-1/root)`` of a symmetric matrix without negative eigenvalues, by products alone.

    The coupled Newton iteration: with ``M = z A`` and ``X = z^(1/root) I`` it repeats
    ``T = ((root + 1) I - M) / root``, ``X = X T``, ``M = T^root M``, which takes M to the identity. The smallest
    eigenvalue grows by ``(1 + 1/root)^root`` at each; the damping bounds it from below, so that their number is fixed.

    Args:
        matrix: Or a stack of matrices.
        root: 2 or 4.
        damping: Relative to the Frobenius norm, which is between the largest eigenvalue and its ``n^0.5``-fold. In fp32
            a condition of more than 1e6 is noise.

    Shapes:
        ``(..., n, n)`` to the same, and ``(..., 1, 1)``: how far M is from the identity at last, in its largest
        element. What is above 0.1, or NaN, is no root. Zeros have the root of the identity.

    Cost:
        `inverse_root_flops`.

    Source: R. Anil et al., 2020, Scalable Second Order Optimization for Deep Learning,
        https://arxiv.org/abs/2002.09018, appendix; C.-H. Guo and N. Higham, 2006, A Schur-Newton Method for the Matrix
        p-th Root and its Inverse, https://doi.org/10.1137/050643374, iteration 4.6. Their damping is relative to the
        largest eigenvalue, which takes another iteration to find.
    """
    identity = mx.eye(matrix.shape[-1])
    largest = mx.abs(matrix).max(axis=(-2, -1), keepdims=True)  # first: squares of small numbers leave fp32's range
    largest = mx.where(largest > 0, largest, 1.0)
    scaled = matrix / largest
    norm = mx.sqrt(mx.square(scaled).sum(axis=(-2, -1), keepdims=True))
    norm = mx.where(norm > 0, norm, 1.0)
    z = (1 + root) / ((1 + damping) * 2)
    m = (scaled / norm + identity * damping) * z
    x = identity * z ** (1 / root)
    for _ in range(_iterations(root, damping)):
        t = identity * (1 + 1 / root) - m * (1 / root)
        x = x @ t
        power = t @ t
        for _ in range(root.bit_length() - 2):
            power = power @ power
        m = power @ m
    error = mx.abs(m - identity).max(axis=(-2, -1), keepdims=True)
    x = (x + mx.swapaxes(x, -1, -2)) * 0.5
    return x * (largest ** (-1 / root) * norm ** (-1 / root)), error


def _iterations(root: int, damping: float) -> int:
    if not isinstance(damping, int | float):
        damping = SMALLEST_DAMPING  # members of a population have theirs
    growth = root * math.log1p(1 / root)
    smallest = damping * (1 + root) / (2 * (1 + damping))
    return max(0, math.ceil(-math.log(smallest) / growth)) + _LAST_ITERATIONS


def inverse_root_flops(n: int, root: int, damping: float) -> int:
    """FLOPs of the products of one `inverse_root`."""
    return _iterations(root, damping) * (root.bit_length() + 1) * 2 * n**3


def orthonormal_columns(matrix: mx.array) -> tuple[mx.array, mx.array]:
    """The Q of ``A = Q R``, up to the signs of its columns, by Cholesky factors and products.

    ``C C^T = A^T A`` gives ``Q = A C^-T``; the square costs half of the digits, so that it is repeated with what came
    out. At first the columns are made of length one, and something is added to the diagonal, so that a factor exists
    at any condition; what is divided by is triangular nevertheless, and so the result is the same Q.

    MLX's Householder reflections are the CPU's alone, ``mx.vmap`` cannot map them, and they take longer there.

    Args:
        matrix: Or a stack of them; of full rank, though that may be in its last digit.

    Shapes:
        ``(..., n, n)`` to the same, and ``(..., 1, 1)``: the largest element of ``Q^T Q - I``. If it is above 1e-3, or
        NaN, that is no Q.

    Cost:
        `orthonormal_flops`.

    Source: T. Fukaya et al., 2020, Shifted Cholesky QR for Computing the QR Factorization of Ill-Conditioned Matrices,
        https://doi.org/10.1137/18M1218212, with two shifted factors more and smaller shifts.
    """
    n = matrix.shape[-1]
    identity = mx.eye(n)
    shift = once(mx.array(4 * n**0.5 * 2.0**-24))  # as a number it would be part of a fused kernel: one for every n
    largest = mx.abs(matrix).max(axis=-2, keepdims=True)
    x = matrix / mx.where(largest > 0, largest, 1.0)
    x = x / mx.maximum(mx.sqrt(mx.square(x).sum(axis=-2, keepdims=True)), 1.0)
    for i in range(_SHIFTED + _UNSHIFTED):
        gram = mx.swapaxes(x, -1, -2) @ x
        if i < _SHIFTED:
            bound = mx.abs(gram).sum(axis=-1, keepdims=True).max(axis=-2, keepdims=True)
            gram = gram + identity * (bound * shift)
        x = x @ mx.swapaxes(inverse_cholesky(gram), -1, -2)
    error = mx.abs(mx.swapaxes(x, -1, -2) @ x - identity).max(axis=(-2, -1), keepdims=True)
    return x, error


_SHIFTED, _UNSHIFTED = 3, 2


def orthonormal_flops(n: int) -> int:
    """FLOPs of the products of one `orthonormal_columns`."""
    return (_SHIFTED + _UNSHIFTED) * (4 * n**3 + inverse_cholesky_flops(n)) + 2 * n**3


def norm_lower_bound(matrix: mx.array) -> mx.array:
    """A lower bound of the largest eigenvalue of a symmetric matrix without negative ones, seldom far below it.

    Two steps of the power method from the row of the largest norm.

    Shapes:
        ``(..., n, n)`` to ``(..., 1, 1)``.

    Source: X.-L. Li, 2024, https://github.com/lixilinx/psgd_torch, ``norm_lower_bound``.
    """
    largest = mx.abs(matrix).max(axis=(-2, -1), keepdims=True)
    scaled = matrix / mx.where(largest > 0, largest, 1.0)
    longest = mx.argmax(mx.square(scaled).sum(axis=-1), axis=-1)[..., None, None]
    row = mx.take_along_axis(scaled, mx.broadcast_to(longest, (*matrix.shape[:-2], 1, matrix.shape[-1])), axis=-2)
    x = row @ scaled
    norm = mx.sqrt(mx.square(x).sum(axis=-1, keepdims=True))
    x = (x / mx.where(norm > 0, norm, 1.0)) @ scaled
    return mx.sqrt(mx.square(x).sum(axis=-1, keepdims=True)) * largest


def in_turn(
    compute: Callable[..., tuple[mx.array, ...]],
    items: Sequence[tuple[mx.array, ...]],
    old: Sequence[tuple[mx.array, ...]],
    step: mx.array,
    every: int,
) -> list[tuple[mx.array, ...]]:
    """What ``compute`` makes of each item once in ``every`` steps; at the other steps, what was there.

    A compiled step cannot skip work: both sides of a choice are computed. But of many items of one shape it can compute
    a few at each step, others every time: of ``n`` items, the first ``ceil(n / every)`` at the steps that ``every``
    divides, the next ones a step later, and so on. So the work of a step is ``every`` times less, as long as there are
    that many items of a shape, and is the same at all steps.

    Args:
        compute: Of stacks, ``(k, ...)`` each, to stacks.
        items: What each is computed from, all of the same shapes.
        old: What each keeps when it is not its turn.
        step: Scalar.
        every: At least 1.
    """
    if every == 1:
        new = compute(*(mx.stack(list(of_all)) for of_all in zip(*items, strict=True)))
        return [tuple(of_all[i] for of_all in new) for i in range(len(items))]
    at_once = -(-len(items) // every)
    turn = (step % every).astype(mx.int32)
    last = len(items) - 1
    # A table, as numbers would be part of a fused kernel: one for every group.
    chosen = mx.array([[min(t * at_once + i, last) for i in range(at_once)] for t in range(every)], mx.int32)[turn]
    new = compute(*(mx.take(mx.stack(list(of_all)), chosen, axis=0) for of_all in zip(*items, strict=True)))
    return [
        tuple(
            mx.where(turn == i // at_once, of_all[i % at_once], before) for of_all, before in zip(new, b, strict=True)
        )
        for i, b in enumerate(old)
    ]
