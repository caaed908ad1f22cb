"""The root-mean-square norm, with a gradient in one kernel of our own where there is one; and the sums that it is of.

A residual stream is read, added to and normalised in every sublayer. On CUDA, in training, what `added` adds and the
norm of it are one kernel, and so are the gradients of the norm and of what goes on `beside` it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp.ops import cuda
from lmxexp.ops.own_gradient import own_gradient

_MOST_WARPS = 8
"""That a row takes, with a pack for each thread."""

_BLOCKS = 512
"""At most. Each adds up the weight's gradient over its rows, in a fixed order."""


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    """``x / sqrt(mean(x ** 2) + eps) * weight``, over the last axis.

    Shapes:
        x ``(..., D)``, weight ``(D,)``; returns the shape of x.
    """
    if weight is None or not is_ours(x, weight):
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
    """Whether the kernel takes rows of this width: whole packs for all 32 threads of a warp."""
    warps, rest = divmod(x.shape[-1], 32 * cuda.per_pack(x.dtype))
    return cuda.usable() and x.dtype == weight.dtype and rest == 0 and warps <= _MOST_WARPS


@cache
def _norm(eps: float) -> own_gradient:
    whole = own_gradient(lambda x, weight: mx.fast.rms_norm(x, weight, eps))

    @whole.vjp
    def gradient(primals, cotangent, output):
        x, weight = primals
        return _gradient(x, weight, cotangent, None, eps)

    return whole


@cache
def _branch(eps: float) -> own_gradient:
    whole = own_gradient(lambda x, weight: (x, mx.fast.rms_norm(x, weight, eps)))

    @whole.vjp
    def gradient(primals, cotangents, outputs):
        (x, weight), (beside, of_norm) = primals, cotangents
        return _gradient(x, weight, of_norm, beside, eps)

    return whole


@cache
def _norm_of_sum(eps: float) -> own_gradient:
    @own_gradient
    def whole(x: mx.array, y: mx.array, weight: mx.array) -> list[mx.array]:
        rows, n_warps, at_once = _layout(x)
        return _sum_kernel(n_warps)(
            *(x, y, weight),
            numbers=[rows, eps],
            blocks=-(-rows // at_once),
            threads=32 * n_warps * at_once,
            typed=x.dtype,
            shapes=[x.shape, x.shape],
            dtypes=[x.dtype, x.dtype],
        )

    @whole.vjp
    def gradient(primals, cotangents, outputs):
        (*_, weight), (of_sum, of_norm) = primals, cotangents
        of_either, of_weight = _gradient(outputs[0], weight, of_norm, of_sum, eps)
        return of_either, of_either, of_weight

    return whole


def _layout(x: mx.array) -> tuple[int, int, int]:
    """Rows, the warps that each takes, and the rows that a block of threads has at once."""
    n_warps = x.shape[-1] // (32 * cuda.per_pack(x.dtype))
    return x.size // x.shape[-1], n_warps, _rows_of_block(n_warps)


def _gradient(
    x: mx.array, weight: mx.array, of_norm: mx.array, beside: mx.array | None, eps: float
) -> tuple[mx.array, mx.array]:
    """Of x, with what is ``beside`` added, and of the weight."""
    width, (rows, n_warps, at_once) = x.shape[-1], _layout(x)
    blocks = min(_BLOCKS, -(-rows // at_once))
    kernel = _kernel(n_warps, beside is not None)
    of_x, of_weight = kernel(
        *(x, weight, of_norm, *(() if beside is None else (beside,))),
        numbers=[rows, eps],
        blocks=blocks,
        threads=32 * n_warps * at_once,
        typed=x.dtype,
        shapes=[x.shape, (blocks, width)],
        dtypes=[x.dtype, mx.float32],
    )
    (of_weight,) = _SUM_OF_BLOCKS(
        of_weight,
        numbers=[blocks, width],
        blocks=-(-width // 32),
        typed=weight.dtype,
        shapes=[weight.shape],
        dtypes=[weight.dtype],
    )
    return of_x, of_weight


# A block of threads adds up 32 columns: each warp every eighth row, and then one of them what all have.
_SUM_OF_BLOCKS = cuda.Kernel(
    "sum_of_blocks",
    ["parts"],
    ["sum"],
    """
    const int n_warps = blockDim.x / 32, warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32, column = blockIdx.x * 32 + lane;
    __shared__ float of_warps[256];
    float total = 0.0f;
    if (column < width) {
      constexpr int AT_ONCE = 8;
      for (int row = warp; row < n; row += AT_ONCE * n_warps) {
        float v[AT_ONCE];
        for (int u = 0; u < AT_ONCE; u++) {
          const int r = row + u * n_warps;
          v[u] = r < n ? parts[static_cast<long long>(r) * width + column] : 0.0f;
        }
        for (int u = 0; u < AT_ONCE; u++) total += v[u];
      }
    }
    of_warps[threadIdx.x] = total;
    __syncthreads();
    if (warp == 0 && column < width) {
      for (int w = 1; w < n_warps; w++) total += of_warps[w * 32 + lane];
      sum[column] = static_cast<T>(total);
    }
    """,
    numbers={"n": "int", "width": "int"},
)


# Of both kernels below: a row is a pack for each thread of as many warps as it takes; a block has as many rows at once
# as have room in it.
def _place(n_warps: int) -> str:
    return (
        f"constexpr int WARPS = {n_warps}, ROWS = {_rows_of_block(n_warps)};"
        """
        constexpr int W = Pack<T>::size, D = 32 * W * WARPS;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, place = warp / WARPS, part = warp % WARPS;
        const int column = (part * 32 + lane) * W;
        """
    )


def _rows_of_block(n_warps: int) -> int:
    """As have room in `lmxexp.ops.cuda.BLOCK` threads."""
    return cuda.BLOCK // (32 * n_warps)


@cache
def _sum_kernel(n_warps: int) -> cuda.Kernel:
    return cuda.Kernel(
        f"rms_norm_of_sum_{n_warps}",
        ["x", "y", "weight"],
        ["sum", "norm"],
        _place(n_warps)
        + """
        const int row = blockIdx.x * ROWS + place;
        const long long at = static_cast<long long>(row) * D + column;
        Pack<T> a = {};
        float squares = 0.0f;
        if (row < n) {
          a = load_pack(x + at);
          const Pack<T> b = load_pack(y + at);
          for (int k = 0; k < W; k++) {
            a.values[k] = static_cast<T>(static_cast<float>(a.values[k]) + static_cast<float>(b.values[k]));
            const float v = static_cast<float>(a.values[k]);
            squares += v * v;
          }
          store_pack(sum + at, a);
        }
        for (int offset = 16; offset > 0; offset /= 2) squares += __shfl_xor_sync(0xffffffff, squares, offset);
        if (WARPS > 1) {
          __shared__ float of_warps[ROWS * WARPS];
          if (lane == 0) of_warps[warp] = squares;
          __syncthreads();
          squares = 0.0f;
          for (int p = 0; p < WARPS; p++) squares += of_warps[place * WARPS + p];
        }
        if (row >= n) return;
        const Pack<T> w = load_pack(weight + column);
        const float r = rsqrtf(squares / D + eps);
        for (int k = 0; k < W; k++) {
          // Rounded before it is scaled, as MLX's is.
          const T normed = static_cast<T>(static_cast<float>(a.values[k]) * r);
          a.values[k] = static_cast<T>(static_cast<float>(normed) * static_cast<float>(w.values[k]));
        }
        store_pack(norm + at, a);
        """,
        numbers={"n": "int", "eps": "float"},
    )


# A thread has the same columns of all its rows.
@cache
def _kernel(n_warps: int, has_beside: bool) -> cuda.Kernel:
    return cuda.Kernel(
        f"rms_norm_gradient_{n_warps}" + ("_beside" if has_beside else ""),
        ["x", "weight", "of_norm", *(["beside"] if has_beside else [])],
        ["of_x", "of_weight"],
        _place(n_warps)
        + f"""
        constexpr bool BESIDE = {"true" if has_beside else "false"};
        const T* other = {"beside" if has_beside else "x"};
        """
        + """
        const Pack<T> w = load_pack(weight + column);
        float sums[W] = {0.0f};
        __shared__ float of_warps[2][2][ROWS * WARPS];  // in turns: one barrier for each row is enough
        int turn = 0;
        for (int first = blockIdx.x * ROWS; first < n; first += gridDim.x * ROWS) {
          const int row = first + place;
          const long long at = static_cast<long long>(row) * D + column;
          Pack<T> a = {}, g = {}, s = {};
          if (row < n) {
            a = load_pack(x + at);
            g = load_pack(of_norm + at);
            if (BESIDE) s = load_pack(other + at);
          }
          float squares = 0.0f, dot = 0.0f;
          for (int k = 0; k < W; k++) {
            const float v = static_cast<float>(a.values[k]);
            squares += v * v;
            dot += v * static_cast<float>(g.values[k]) * static_cast<float>(w.values[k]);
          }
          for (int offset = 16; offset > 0; offset /= 2) {
            squares += __shfl_xor_sync(0xffffffff, squares, offset);
            dot += __shfl_xor_sync(0xffffffff, dot, offset);
          }
          if (WARPS > 1) {
            if (lane == 0) {
              of_warps[turn][0][warp] = squares;
              of_warps[turn][1][warp] = dot;
            }
            __syncthreads();
            squares = dot = 0.0f;
            for (int p = 0; p < WARPS; p++) {
              squares += of_warps[turn][0][place * WARPS + p];
              dot += of_warps[turn][1][place * WARPS + p];
            }
            turn = 1 - turn;
          }
          if (row >= n) continue;
          const float r = rsqrtf(squares / D + eps), c = dot * r * r * r / D;
          for (int k = 0; k < W; k++) {
            const float v = static_cast<float>(a.values[k]), d = static_cast<float>(g.values[k]);
            sums[k] += d * v * r;
            float of_one = d * static_cast<float>(w.values[k]) * r - v * c;
            if (BESIDE) of_one += static_cast<float>(s.values[k]);
            a.values[k] = static_cast<T>(of_one);
          }
          store_pack(of_x + at, a);
        }
        __shared__ float of_rows[ROWS * D];
        for (int k = 0; k < W; k++) of_rows[place * D + column + k] = sums[k];
        __syncthreads();
        for (int i = threadIdx.x; i < D; i += blockDim.x) {
          float total = of_rows[i];
          for (int p = 1; p < ROWS; p++) total += of_rows[p * D + i];
          of_weight[static_cast<long long>(blockIdx.x) * D + i] = total;
        }
        """,
        numbers={"n": "int", "eps": "float"},
    )
