"""The kernels of `lmxexp.ops.rms_norm`: a row is a pack for each thread of as many warps as it takes."""

from functools import cache

import mlx.core as mx

from lmxexp.ops import cuda

_MOST_WARPS = 8
"""That a row takes, with a pack for each thread."""

_BLOCKS = 512
"""At most. Each adds up the weight's gradient over its rows, in a fixed order."""


def take(x: mx.array, weight: mx.array) -> bool:
    """Whether they may be called now for rows of this width: whole packs for all 32 threads of a warp."""
    warps, rest = divmod(x.shape[-1], 32 * cuda.per_pack(x.dtype))
    return cuda.usable() and x.dtype == weight.dtype and rest == 0 and warps <= _MOST_WARPS


def sum_and_norm(x: mx.array, y: mx.array, weight: mx.array, eps: float) -> list[mx.array]:
    """``x + y`` and the norm of it.

    Shapes:
        x and y ``(..., D)``, weight ``(D,)``; returns two of the shape of x.
    """
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


def gradient(
    x: mx.array, weight: mx.array, of_norm: mx.array, beside: mx.array | None, eps: float
) -> tuple[mx.array, mx.array]:
    """Of x, with what is ``beside`` added, and of the weight.

    Shapes:
        x, of_norm and beside ``(..., D)``, weight ``(D,)``; returns the shapes of x and the weight.
    """
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


def _layout(x: mx.array) -> tuple[int, int, int]:
    """Rows, the warps that each takes, and the rows that a block of threads has at once."""
    n_warps = x.shape[-1] // (32 * cuda.per_pack(x.dtype))
    return x.size // x.shape[-1], n_warps, _rows_of_block(n_warps)


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
