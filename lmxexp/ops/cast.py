"""Many arrays in another type."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from lmxexp.ops import cuda
from lmxexp.ops.trees import by_path

_PER_BLOCK = 1 << 14
"""Elements that one block of threads casts."""

_AT_ONCE = 128
"""Arrays of one call: a kernel takes 4 KB of arguments, and a pointer is 8 bytes of them."""


def cast_all(arrays: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """``[a.astype(dtype) for a in arrays]``; on CUDA those of fp32 in few kernels, as on a small model the time goes
    into launches. There is no gradient."""
    result = list(arrays)
    own = [i for i, a in enumerate(arrays) if a.dtype == mx.float32 and a.size]
    if not cuda.usable() or dtype == mx.float32 or len(own) < 2:
        return [a.astype(dtype) for a in arrays]
    for begin in range(0, len(own), _AT_ONCE):
        places = own[begin : begin + _AT_ONCE]
        for i, made in zip(places, _cast([arrays[i] for i in places], dtype), strict=True):
            result[i] = made
    return [a.astype(dtype) for a in result]


def cast_tree(tree: Any, dtype: mx.Dtype) -> Any:
    """The tree with its floating-point leaves in ``dtype``, by `cast_all`."""
    leaves = {path: a for path, a in by_path(tree).items() if mx.issubdtype(a.dtype, mx.floating)}
    made = dict(zip(leaves, cast_all(list(leaves.values()), dtype), strict=True))
    return tree_map_with_path(lambda path, a: made.get(path, a), tree)


def _cast(arrays: list[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    blocks = [(which, i) for which, a in enumerate(arrays) for i in range(-(-a.size // _PER_BLOCK))]
    table = mx.array([[which, i * _PER_BLOCK, arrays[which].size] for which, i in blocks], mx.int32)
    return _kernel(len(arrays))(
        *(*arrays, table),
        blocks=len(blocks),
        typed=dtype,
        shapes=[a.shape for a in arrays],
        dtypes=[dtype] * len(arrays),
    )


@cache
def _kernel(n: int) -> cuda.Kernel:
    return cuda.Kernel(
        f"cast_{n}",
        [*(f"x{i}" for i in range(n)), "table"],
        [f"y{i}" for i in range(n)],
        """
        constexpr int W = Pack<T>::size;
        const float* x = nullptr;
        T* y = nullptr;
        switch (table[3 * blockIdx.x]) {
        """
        + "".join(f"case {i}: x = x{i}; y = y{i}; break;\n" for i in range(n))
        + f"""
        }}
        const long long begin = table[3 * blockIdx.x + 1], size = table[3 * blockIdx.x + 2];
        const long long end = begin + {_PER_BLOCK} < size ? begin + {_PER_BLOCK} : size;
        for (long long i = begin + threadIdx.x * W; i < end; i += blockDim.x * W) {{
          if (i + W <= end) {{
            Pack<T> out;
            for (int part = 0; part < W / 4; part++) {{
              const Pack<float> in = load_pack(x + i + 4 * part);
              for (int k = 0; k < 4; k++) out.values[4 * part + k] = static_cast<T>(in.values[k]);
            }}
            store_pack(y + i, out);
          }} else {{
            for (long long j = i; j < end; j++) y[j] = static_cast<T>(x[j]);
          }}
        }}
        """,
    )
