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
        x.size * weight.shape[0] <= LARGEST
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


@cache
def _device_can() -> bool:
    """Whether there are tensor cores for bf16, and copies to shared memory that threads need not wait for."""
    architecture = cuda_compiler.architecture()
    return architecture is None or int(architecture.removeprefix("sm_")) >= 80


def _run(a_in_rows: bool, b_in_rows: bool, a, b, m: int, n: int, k: int, shape: Sequence[int]) -> mx.array:
    return _kernel(a_in_rows, b_in_rows)(
        *(a, b),
        numbers=[m, n, k],
        blocks=-(-m // _TILE) * -(-n // _TILE),
        typed=a.dtype,
        shapes=[shape],
        dtypes=[a.dtype],
    )[0]


@cache
def _kernel(a_in_rows: bool, b_in_rows: bool) -> cuda.Kernel:
    """``c (M, N) = sum over k of a(m, k) b(n, k)``. A matrix is in rows if its elements of one m, or n, lie next to each
    other, and else if those of one k do.

    Eight warps compute a tile, each 32 rows and 16 columns of it, by products of 16 x 16 and 16 x 8 elements. The next
    parts of both matrices are under way meanwhile.
    """
    names = [("a", a_in_rows), ("b", b_in_rows)]
    return cuda.Kernel(
        "product_" + "".join("r" if in_rows else "c" for _, in_rows in names),
        ["a", "b"],
        ["c"],
        "".join(f"constexpr bool {name.upper()}_IN_ROWS = {str(in_rows).lower()};\n" for name, in_rows in names)
        + _SOURCE,
        numbers={"M": "int", "N": "int", "K": "int"},
    )


_SOURCE = """
constexpr int TILE = 64, DEPTH = 32, SLOTS = 4, W = Pack<T>::size;
// Rows in shared memory are a pack longer, so that the threads of a warp read from different banks.
constexpr int A_ROWS = A_IN_ROWS ? TILE : DEPTH, A_WIDTH = (A_IN_ROWS ? DEPTH : TILE) + W;
constexpr int B_ROWS = B_IN_ROWS ? TILE : DEPTH, B_WIDTH = (B_IN_ROWS ? DEPTH : TILE) + W;
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
// Elements k and k + 1 of a row, or column, as an instruction takes them.
auto two = [](const T* part, bool in_rows, int width, int i, int k) {
  const unsigned short* bits = reinterpret_cast<const unsigned short*>(part);
  if (in_rows) return *reinterpret_cast<const unsigned*>(bits + i * width + k);
  return bits[k * width + i] | static_cast<unsigned>(bits[(k + 1) * width + i]) << 16;
};
auto multiply_add = [](float (&sums)[4], const unsigned (&x)[4], const unsigned (&y)[2]) {
#ifdef __CUDACC__
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
#else
  mma_16_8_16<T>(sums, x, y);
#endif
};

const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
const int m1 = warp / 4 * 32 + lane / 4, n1 = warp % 4 * 16 + lane / 4, k1 = lane % 4 * 2;
float sums[2][2][4] = {};
for (int part = 0; part < SLOTS - 1; part++) send_both(part);
for (int part = 0; part < n_parts; part++) {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(SLOTS - 2) : "memory");
#endif
  __syncthreads();  // this part is there for all threads, and they are through with the one before
  send_both(part + SLOTS - 1);
  const T* a_part = a_parts[part % SLOTS];
  const T* b_part = b_parts[part % SLOTS];
#pragma unroll
  for (int depth = 0; depth < DEPTH; depth += 16) {
    const int k = depth + k1;
    unsigned x[2][4], y[2][2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int r = 0; r < 4; r++) {
        x[i][r] = two(a_part, A_IN_ROWS, A_WIDTH, m1 + 16 * i + r % 2 * 8, k + r / 2 * 8);
      }
#pragma unroll
      for (int r = 0; r < 2; r++) y[i][r] = two(b_part, B_IN_ROWS, B_WIDTH, n1 + 8 * i, k + r * 8);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < 2; j++) multiply_add(sums[i][j], x[i], y[j]);
    }
  }
}
struct alignas(4) Two {
  T values[2];
};
#pragma unroll
for (int i = 0; i < 2; i++) {
#pragma unroll
  for (int j = 0; j < 2; j++) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int row = m0 + m1 + 16 * i + 8 * r, column = n0 + warp % 4 * 16 + 8 * j + k1;
      if (row >= M || column >= N) continue;
      Two& to = *reinterpret_cast<Two*>(c + static_cast<long long>(row) * N + column);
      to.values[0] = static_cast<T>(sums[i][j][2 * r]);
      to.values[1] = static_cast<T>(sums[i][j][2 * r + 1]);
    }
  }
}
"""
