"""Products of small matrices on CUDA, which cost the host more than the device.

MLX asks cuBLASLt for each product which kernel to take, has it launched into a capture of its own, and makes that a
graph within the graph: 13 us for a product that the device computes in four, and four operations around it for views.
A model of a few million parameters waits for the host then. Here a product is one operation, a kernel of ours on tensor
cores. Of large matrices cuBLAS's kernels are several times as fast.
"""

from collections.abc import Sequence
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp.ops import cuda, cuda_compiler
from lmxexp.ops.own_gradient import own_gradient

LARGEST = 1 << 30
"""Multiplications of a product that is computed so. The three of a layer have as many each."""

_TILE = 64
"""Rows and columns of the result that a block of threads computes."""


def takes(x: mx.array, weight: mx.array) -> bool:
    """Whether `product` may be called, and is meant to be."""
    return (
        0 < x.size * weight.shape[0] <= LARGEST
        and cuda.usable()
        and x.dtype == weight.dtype == mx.bfloat16
        and weight.ndim == 2
        and all(n % cuda.per_pack(x.dtype) == 0 for n in weight.shape)
        and _device_can()
    )


def product(x: mx.array, weight: mx.array) -> mx.array:
    """``x @ weight.T``, the weight's gradient in rows. Sums are in fp32 and in one order.

    Shapes:
        x ``(..., D)``, weight ``(O, D)``, both bf16 (see `takes`); returns ``(..., O)``.
    """
    return cast(mx.array, _product(x, weight))


@own_gradient
def _product(x: mx.array, weight: mx.array) -> mx.array:
    return by_rows(x, weight)


@_product.vjp
def _gradients(primals, cotangent, output):
    x, weight = primals
    return by_columns(cotangent, weight), of_columns(cotangent, x)


def by_rows(x: mx.array, weight: mx.array) -> mx.array:
    """``(..., D)`` and ``(O, D)`` to ``x @ weight.T``, ``(..., O)``."""
    n, width = weight.shape
    return _run(True, True, x, weight, x.size // width, n, width, (*x.shape[:-1], n))


def by_columns(x: mx.array, weight: mx.array) -> mx.array:
    """``(..., O)`` and ``(O, D)`` to ``x @ weight``, ``(..., D)``."""
    width, n = weight.shape
    return _run(True, False, x, weight, x.size // width, n, width, (*x.shape[:-1], n))


def of_columns(x: mx.array, y: mx.array) -> mx.array:
    """``(..., O)`` and ``(..., D)`` to ``x.T @ y``, ``(O, D)``, over all that is in front."""
    m, n = x.shape[-1], y.shape[-1]
    return _run(False, False, x, y, m, n, x.size // m, (m, n))


def _device_can() -> bool:
    """Whether there are tensor cores for bf16, and copies to shared memory that threads need not wait for."""
    architecture = cuda_compiler.architecture()
    return architecture is None or int(architecture.removeprefix("sm_")) >= 80


def _run(a_in_rows: bool, b_in_rows: bool, a, b, m: int, n: int, k: int, shape: Sequence[int]) -> mx.array:
    return _kernel(a_in_rows, b_in_rows)(
        *(a, b),
        numbers=[m, n, k],
        blocks=-(-m // _TILE) * -(-n // _TILE),
        threads=8 * 32,
        typed=a.dtype,
        shapes=[shape],
        dtypes=[a.dtype],
    )[0]


@cache
def _kernel(a_in_rows: bool, b_in_rows: bool) -> cuda.Kernel:
    """``c (M, N) = sum over k of a(m, k) b(n, k)``. A matrix is in rows if elements of one m, or n,
    lie next to each other, and else those of one k do.

    Four warps compute a tile, each a quarter of it, by products of 16 x 16 and 16 x 8 elements, and four more do for
    the other half of each part of the depth. The next parts of both matrices are under way meanwhile.
    """
    names = [("a", a_in_rows), ("b", b_in_rows)]
    return cuda.Kernel(
        "product_" + "".join("r" if in_rows else "c" for _, in_rows in names),
        ["a", "b"],
        ["c"],
        f"constexpr int TILE = {_TILE};\n"
        + "".join(f"constexpr bool {name.upper()}_IN_ROWS = {str(in_rows).lower()};\n" for name, in_rows in names)
        + _SOURCE,
        numbers={"M": "int", "N": "int", "K": "int"},
    )


_SOURCE = """
constexpr int DEPTH = 32, SLOTS = 4, W = Pack<T>::size;
// Rows in shared memory are a pack longer, so that the threads of a warp read from different banks.
constexpr int A_ROWS = A_IN_ROWS ? TILE : DEPTH, A_WIDTH = (A_IN_ROWS ? DEPTH : TILE) + W;
constexpr int B_ROWS = B_IN_ROWS ? TILE : DEPTH, B_WIDTH = (B_IN_ROWS ? DEPTH : TILE) + W;
constexpr int WHOLE_WIDTH = TILE + W;
static_assert(sizeof(T) * SLOTS * A_ROWS * A_WIDTH >= sizeof(float) * TILE * WHOLE_WIDTH, "the sums take its place");
__shared__ __align__(16) T a_parts[SLOTS][A_ROWS * A_WIDTH];
__shared__ __align__(16) T b_parts[SLOTS][B_ROWS * B_WIDTH];
const int across = (N + TILE - 1) / TILE;
const int m0 = blockIdx.x / across * TILE, n0 = blockIdx.x % across * TILE;

// A pack to shared memory, or zeros, without waiting for it.
auto send = [](T* to, const T* from, bool inside) {
#ifdef __CUDACC__
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(place), "l"(from), "r"(bytes) : "memory");
#else
  for (int i = 0; i < W; i++) to[i] = inside ? from[i] : T(0.0f);
#endif
};
// One pack of a part by each thread.
auto send_part = [&](T* part, const T* x, bool in_rows, int first, int n, int k0) {
  const int packs = (in_rows ? DEPTH : TILE) / W, width = (in_rows ? DEPTH : TILE) + W;
  const int i = threadIdx.x / packs, j = threadIdx.x % packs * W;
  const int row = (in_rows ? first : k0) + i, column = (in_rows ? k0 : first) + j;
  const int rows = in_rows ? n : K, columns = in_rows ? K : n;
  const bool inside = row < rows && column < columns;
  send(part + i * width + j, inside ? x + static_cast<long long>(row) * columns + column : x, inside);
};
const int n_parts = (K + DEPTH - 1) / DEPTH;
auto send_both = [&](int part) {
  if (part < n_parts) {
    send_part(a_parts[part % SLOTS], a, A_IN_ROWS, m0, M, part * DEPTH);
    send_part(b_parts[part % SLOTS], b, B_IN_ROWS, n0, N, part * DEPTH);
  }
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
};
// Four times 8 x 8 elements, of which each eight threads name the rows, as the next instruction takes them.
auto fetch = [](unsigned (&to)[4], const T* row, bool in_rows) {
#ifdef __CUDACC__
  const unsigned place = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if (in_rows) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(place) : "memory");
  }
#else
  load_matrices(to, row, !in_rows);
#endif
};
// 16 x 16 and 16 x 8 elements.
auto multiply_add = [](float (&sums)[4], const unsigned (&x)[4], unsigned y0, unsigned y1) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y0), "r"(y1));
#else
  mma_16_8_16<T>(sums, x, y0, y1);
#endif
};

const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
const int m1 = warp / 2 % 2 * 32, n1 = warp % 2 * 32, k1 = warp / 4 * 16;
// What a thread names of four: rows of the first and third, second and fourth, are of the same m; of the first and
// second, third and fourth, of the same n.
const int one = lane / 8 % 2 * 8, other = lane / 16 * 8, row = lane % 8;
const int a_place = A_IN_ROWS ? (m1 + one + row) * A_WIDTH + k1 + other : (k1 + other + row) * A_WIDTH + m1 + one;
const int b_place = B_IN_ROWS ? (n1 + other + row) * B_WIDTH + k1 + one : (k1 + one + row) * B_WIDTH + n1 + other;
float sums[2][4][4] = {};
// Loops stay loops: MLX hashes all of the code each time that it launches it.
#pragma unroll 1
for (int part = 0; part < SLOTS - 1; part++) send_both(part);
#pragma unroll 1
for (int part = 0; part < n_parts; part++) {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(SLOTS - 2) : "memory");
#endif
  __syncthreads();  // this part is there for all threads, and they are through with the one before
  send_both(part + SLOTS - 1);
  unsigned x[2][4], y[2][4];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    fetch(x[i], a_parts[part % SLOTS] + a_place + 16 * i * (A_IN_ROWS ? A_WIDTH : 1), A_IN_ROWS);
    fetch(y[i], b_parts[part % SLOTS] + b_place + 16 * i * (B_IN_ROWS ? B_WIDTH : 1), B_IN_ROWS);
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) multiply_add(sums[i][j], x[i], y[j / 2][j % 2 * 2], y[j / 2][j % 2 * 2 + 1]);
  }
}
// What the warps of the second half of the depth have, and those of the first add to it.
float* whole = reinterpret_cast<float*>(a_parts);
float* own = whole + (m1 + lane / 4) * WHOLE_WIDTH + n1 + lane % 4 * 2;
#pragma unroll 1
for (int half = 1; half >= 0; half--) {
  __syncthreads();
  if (warp / 4 != half) continue;
#pragma unroll
  for (int i = 0; i < 2; i++) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        float& sum = own[(16 * i + 8 * (r / 2)) * WHOLE_WIDTH + 8 * j + r % 2];
        sum = sums[i][j][r] + (half ? 0.0f : sum);
      }
    }
  }
}
__syncthreads();
#pragma unroll 1
for (int i = threadIdx.x * W; i < TILE * TILE; i += blockDim.x * W) {
  const int m = m0 + i / TILE, n = n0 + i % TILE;
  if (m >= M || n >= N) continue;
  const float* from = whole + i / TILE * WHOLE_WIDTH + i % TILE;
  Pack<T> pack;
#pragma unroll
  for (int k = 0; k < W; k++) pack.values[k] = static_cast<T>(from[k]);
  store_pack(c + static_cast<long long>(m) * N + n, pack);
}
"""
