"""Inverses of Cholesky factors and of triangular matrices, by products but for small blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx

from lmxexp.ops import cuda
from lmxexp.ops.chunks import power_of_two
from lmxexp.ops.own_gradient import own_gradient
from lmxexp.ops.unit_lower import unit_lower_flops, unit_lower_inverse

_BASE = 128
"""Rows of which LAPACK makes a factor."""

_BASE_ON_CUDA = 512
"""Rows of which the factor is made column by column of blocks: beyond, halves move less memory."""

_BLOCK = 64
"""Rows of which the kernel makes the inverse of a factor."""


def inverse_cholesky(matrix: mx.array) -> mx.array:
    """``C^-1`` of the lower triangular C with ``C C^T = A``, by products of blocks; NaN or worse if there is no C.

    The factors of the blocks on the diagonal are LAPACK's, on the CPU's stream. (It takes 4 seconds for a matrix of
    3072 rows as a whole.) A GPU waits 2 ms for each of them, so that on CUDA a kernel makes their inverses.

    Shapes:
        ``(..., n, n)`` to the same, fp32.

    Cost:
        `inverse_cholesky_flops`; on CUDA up to twice as many.

    Source: Golub & Van Loan, "Matrix Computations", section 4.2.9.
    """
    # Elsewhere a rule for `mx.vmap` is not needed, and no more than the operations themselves should be traced.
    return cast(mx.array, _on_cuda(matrix)) if cuda.on_cuda() else _by_halves(matrix, _BASE, _by_lapack)


def inverse_cholesky_flops(n: int) -> int:
    """FLOPs of the products of one `inverse_cholesky`."""
    if n <= _BASE:
        return upper_inverse_flops(n)
    a, b = n // 2, n - n // 2
    products = 2 * a * a * b + 2 * b * b * a + 2 * a * a * b + 2 * b * b * a
    return products + inverse_cholesky_flops(a) + inverse_cholesky_flops(b)


def _by_halves(matrix: mx.array, base: int, invert: Callable[[mx.array], mx.array]) -> mx.array:
    """`inverse_cholesky`, of no more than ``base`` rows by ``invert``."""
    n = matrix.shape[-1]
    if n <= base:
        return invert(matrix)
    half = n // 2
    first = _by_halves(matrix[..., :half, :half], base, invert)
    below = matrix[..., half:, :half] @ mx.swapaxes(first, -1, -2)
    second = _by_halves(matrix[..., half:, half:] - below @ mx.swapaxes(below, -1, -2), base, invert)
    corner = -(second @ (below @ first))
    top = mx.concatenate([first, mx.zeros((*matrix.shape[:-2], half, n - half))], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)


def _by_lapack(matrix: mx.array) -> mx.array:
    upper = mx.linalg.cholesky(matrix, upper=True, stream=mx.cpu)  # type: ignore[arg-type]
    return mx.swapaxes(upper_inverse(upper), -1, -2)


@own_gradient
def _on_cuda(matrix: mx.array) -> mx.array:
    if not cuda.usable():
        return _by_halves(matrix, _BASE, _by_lapack)
    return _by_halves(matrix, _BASE_ON_CUDA, _by_columns)


_on_cuda.takes_leading_axes()


def _by_columns(matrix: mx.array, invert: Callable[[mx.array], mx.array] | None = None) -> mx.array:
    """`inverse_cholesky` by elimination of ``[A, I]``, `_BLOCK` rows at a time.

    What is left of both is one matrix, and a step takes it one block of rows and columns further. So there are few
    operations, no two of them elementwise in a row: ``mx.compile`` finds nothing that it would make kernels of.

    Args:
        invert: of a block; None: by the kernel.
    """
    invert = invert or _of_block
    n = matrix.shape[-1]
    if n <= _BLOCK:
        return invert(matrix)
    left = mx.concatenate([matrix, mx.broadcast_to(mx.eye(n), matrix.shape)], axis=-1)
    rows = []
    for first in range(0, n, _BLOCK):
        count = min(_BLOCK, n - first)
        below = n - first - count
        top = invert(left[..., :count, :count]) @ left[..., :count, count:]
        rows.append(top[..., -n:])
        if below:
            left = left[..., count:, count:] - mx.swapaxes(top[..., :below], -1, -2) @ top
    return mx.concatenate(rows, axis=-2)


def _of_block(matrix: mx.array) -> mx.array:
    """`inverse_cholesky` of at most `_BLOCK` rows, by the kernel; NaN from the first pivot on that is not positive."""
    *lead, n, _ = matrix.shape
    return _INVERSE_FACTOR(
        matrix,
        numbers=[n],
        blocks=math.prod(lead),
        typed=matrix.dtype,
        shapes=[matrix.shape],
        dtypes=[matrix.dtype],
    )[0]


# A block of threads for each matrix, a thread for 16 rows of one column, which it keeps in registers. Row by row [A, I]
# becomes D^0.5 [C^T, C^-1], D being the pivots, by whose roots all is divided at last. A column of the second half
# begins where one of the first ends, so that both have room in one square. What is left of A stays symmetric: its pivot
# row is its pivot column. Rows and columns beyond the matrix are those of the identity.
_INVERSE_FACTOR = cuda.Kernel(
    "inverse_cholesky_factor",
    ["matrix"],
    ["inverse"],
    """
    constexpr int N = 64, ROWS = 16, W = Pack<T>::size;
    const T nothing = __int_as_float(0x7fc00000);  // NaN
    const int column = threadIdx.x % N, first = threadIdx.x / N * ROWS;
    const long long begin = static_cast<long long>(blockIdx.x) * n * n;
    // Two, in turns: one barrier a step is enough.
    __shared__ __align__(16) T pivot_rows[2][N];
    __shared__ T scales[N];
    T m[ROWS];
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = first + r;
      m[r] = row < n && column < n ? matrix[begin + row * n + column] : static_cast<T>(row == column);
    }
    for (int base = 0; base < n; base += ROWS) {
      #pragma unroll
      for (int r = 0; r < ROWS; r++) {
        const int j = base + r;
        T* shared_row = pivot_rows[r % 2];
        if (first == base) shared_row[column] = m[r];
        __syncthreads();
        const T pivot = shared_row[j];
        if (threadIdx.x == 0) scales[j] = pivot;
        const T scaled = pivot > 0 ? (column == j ? static_cast<T>(1) : shared_row[column]) / pivot : nothing;
        #pragma unroll
        for (int q = 0; q < ROWS; q += W) {
          const Pack<T> factors = load_pack(shared_row + first + q);
          #pragma unroll
          for (int k = 0; k < W; k++) {
            // Rows below the pivot's alone.
            if (first > base || (first == base && q + k > r)) {
              m[q + k] = (column == j ? static_cast<T>(0) : m[q + k]) - factors.values[k] * scaled;
            }
          }
        }
      }
    }
    __syncthreads();
    if (threadIdx.x < n) {
      const T pivot = scales[threadIdx.x];
      scales[threadIdx.x] = pivot > 0 ? 1 / sqrtf(pivot) : nothing;
    }
    __syncthreads();
    #pragma unroll
    for (int r = 0; r < ROWS; r++) {
      const int row = first + r;
      if (row < n && column < n) {
        const T scale = scales[row];
        inverse[begin + row * n + column] = column < row ? m[r] * scale : column == row ? scale : static_cast<T>(0);
      }
    }
    """,
    numbers={"n": "int"},
)


def upper_inverse(matrix: mx.array) -> mx.array:
    """The inverse of an upper triangular matrix without zeros on its diagonal, by products alone.

    Shapes:
        ``(..., n, n)`` to the same.

    Cost:
        `upper_inverse_flops`.

    Source: See `lmxexp.ops.unit_lower.unit_lower_inverse`.
    """
    inverse_diagonal = 1 / mx.diagonal(matrix, axis1=-2, axis2=-1)
    unit = matrix * inverse_diagonal[..., :, None]
    return mx.swapaxes(unit_lower_inverse(mx.swapaxes(unit, -1, -2)), -1, -2) * inverse_diagonal[..., None, :]


def upper_inverse_flops(n: int) -> int:
    """FLOPs of one `upper_inverse`."""
    return unit_lower_flops(power_of_two(n))
