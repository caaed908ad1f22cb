"""Many arrays in another type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mlx.core as mx

from lmxexp.ops import cuda

_PER_BLOCK = 1 << 14
"""Elements that one block of threads casts."""

_AT_ONCE = 128
"""Arrays of one call, of whose 4 KB of arguments each takes 16 bytes."""


def cast_all(arrays: Sequence[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """The floating-point ones among them in ``dtype``, the others as they are. Not to be differentiated.

    On CUDA one kernel casts all: those of a small model are over before the next can be launched.

    Shapes:
        any; each keeps its own.
    """
    casts = [mx.issubdtype(a.dtype, mx.floating) for a in arrays]
    out = [a.astype(dtype) if to_cast else a for a, to_cast in zip(arrays, casts, strict=True)]
    if cuda.usable() and dtype.size == 2:
        wide = [i for i, a in enumerate(arrays) if a.dtype == mx.float32 and a.size]
        for begin in range(0, len(wide), _AT_ONCE):
            places = wide[begin : begin + _AT_ONCE]
            for i, narrow in zip(places, _at_once([arrays[i] for i in places], dtype), strict=True):
                out[i] = narrow
    return out


def _at_once(arrays: list[mx.array], dtype: mx.Dtype) -> list[mx.array]:
    """Of fp32."""
    blocks = [(which, i) for which, a in enumerate(arrays) for i in range(-(-a.size // _PER_BLOCK))]
    table = mx.array([[which, i * _PER_BLOCK, arrays[which].size] for which, i in blocks], mx.int32)
    return _kernel(len(arrays))(
        *arrays,
        table,
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
            Pack<float> a = load_pack(x + i), b = load_pack(x + i + W / 2);
            Pack<T> narrow;
            for (int k = 0; k < W / 2; k++) {{
              narrow.values[k] = static_cast<T>(a.values[k]);
              narrow.values[k + W / 2] = static_cast<T>(b.values[k]);
            }}
            store_pack(y + i, narrow);
          }} else {{
            for (long long j = i; j < end; j++) y[j] = static_cast<T>(x[j]);
          }}
        }}
        """,
    )
