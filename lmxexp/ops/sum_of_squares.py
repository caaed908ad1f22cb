"""The sum of the squares of many arrays."""

from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from lmxexp.ops import cuda

_PER_BLOCK = 1 << 15
"""Elements that one block of threads adds up."""

_AT_ONCE = 256
"""Arrays of one call: a kernel takes 4 KB of arguments, and a pointer is 8 bytes of them."""


def sum_of_squares(arrays: Sequence[mx.array]) -> mx.array:
    """In fp32, always added in the same order.

    On CUDA one kernel goes through all arrays: MLX widens, squares and adds up each by itself, in three kernels that
    read four times the memory, and on a small model the time goes into their launches.

    Shapes:
        any, to a scalar.
    """
    if not cuda.usable() or not arrays:
        total = mx.array(0.0)
        for a in arrays:
            total = total + a.astype(mx.float32).square().sum()
        return total
    by_type: dict[mx.Dtype, list[mx.array]] = {}
    for a in arrays:
        by_type.setdefault(a.dtype, []).append(a)
    parts = []
    for dtype, of_type in by_type.items():
        parts += [_of_type(dtype, of_type[i : i + _AT_ONCE]) for i in range(0, len(of_type), _AT_ONCE)]
    return (mx.concatenate(parts) if len(parts) > 1 else parts[0]).sum()


def _of_type(dtype: mx.Dtype, arrays: list[mx.array]) -> mx.array:
    """``(n_blocks,)`` fp32, of arrays of one type."""
    blocks = [(which, i) for which, a in enumerate(arrays) for i in range(-(-a.size // _PER_BLOCK))]
    table = mx.array([[which, i * _PER_BLOCK, arrays[which].size] for which, i in blocks], mx.int32)
    kernel = _kernel(len(arrays))
    return kernel(*arrays, table, blocks=len(blocks), typed=dtype, shapes=[(len(blocks),)], dtypes=[mx.float32])[0]


@cache
def _kernel(n: int) -> cuda.Kernel:
    return cuda.Kernel(
        f"sum_of_squares_{n}",
        [*(f"x{i}" for i in range(n)), "table"],
        ["sums"],
        """
        constexpr int W = Pack<T>::size;
        const T* x = nullptr;
        switch (table[3 * blockIdx.x]) {
        """
        + "".join(f"case {i}: x = x{i}; break;\n" for i in range(n))
        + f"""
        }}
        const long long begin = table[3 * blockIdx.x + 1], size = table[3 * blockIdx.x + 2];
        const long long end = begin + {_PER_BLOCK} < size ? begin + {_PER_BLOCK} : size;
        float sum = 0.0f;
        for (long long i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {{
          if (i + W <= end) {{
            Pack<T> pack = load_pack(x + i);
            for (int k = 0; k < W; k++) sum += static_cast<float>(pack.values[k]) * static_cast<float>(pack.values[k]);
          }} else {{
            for (long long j = i; j < end; j++) sum += static_cast<float>(x[j]) * static_cast<float>(x[j]);
          }}
        }}
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
        __shared__ float of_warps[32];
        if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {{
          for (int w = 1; w < blockDim.x / 32; w++) sum += of_warps[w];
          sums[blockIdx.x] = sum;
        }}
        """,
    )
