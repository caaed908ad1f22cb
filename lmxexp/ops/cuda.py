"""Kernels of our own for CUDA devices. Each has a twin of MLX's operations, which every other device runs.

A kernel is written where a profile of the training step shows that MLX's operations move several times the memory that
the work needs: ``benchmarks/LOG.md`` has the figures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

BLOCK = 256
"""Threads of a block, in every kernel here."""

_HEADER = """
#include "mlx/backend/cuda/device/utils.cuh"
#include <cooperative_groups.h>

// What one thread loads or stores at once: 16 bytes.
template <typename T>
struct alignas(16) Pack {
  static constexpr int size = 16 / sizeof(T);
  T values[16 / sizeof(T)];
};

template <typename T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T>*>(from);
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}
"""


_under_vmap = False


def on_cuda() -> bool:
    """Whether these kernels are for this device, unless ``LMXEXP_CUDA_KERNELS=0`` chose the twins."""
    if os.environ.get("LMXEXP_CUDA_KERNELS") == "0":
        return False
    return mx.default_device().type == mx.gpu and mx.cuda.is_available()


def usable() -> bool:
    """Whether one may be called now, see `under_vmap`."""
    return on_cuda() and not _under_vmap


@contextmanager
def under_vmap(whether: bool) -> Iterator[None]:
    """Within, functions are traced for ``mx.vmap``, which cannot map a kernel: what has a rule of its own is traced as
    well, in its twin, and then replaced by the rule. The rule is no longer under it, and may call the kernel.
    """
    global _under_vmap
    before, _under_vmap = _under_vmap, whether
    try:
        yield
    finally:
        _under_vmap = before


def per_pack(dtype: mx.Dtype) -> int:
    """Elements that a thread loads at once; what a row's length has to be a multiple of."""
    return 16 // dtype.size


def takes_rows(width: int, dtype: mx.Dtype) -> bool:
    """Whether a kernel may be called now for rows of ``width`` elements, each of which begins where a pack may."""
    return usable() and width % per_pack(dtype) == 0


class Kernel:
    """A CUDA kernel, compiled where it is first called.

    Args:
        name: of the function, without the types that it is compiled for.
        inputs, outputs: the names that the arrays have in ``source``, each a pointer to row-contiguous elements.
        source: the body; ``T`` is the type of its ``typed`` argument.
    """

    def __init__(self, name: str, inputs: Sequence[str], outputs: Sequence[str], source: str):
        # MLX finds what it has compiled by its name.
        version = hashlib.sha1((_HEADER + source).encode()).hexdigest()[:8]
        self._name, self._source = f"lmxexp_{name}_{version}", source
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._kernel: Any = None

    def __call__(
        self,
        *arrays: mx.array,
        blocks: int,
        typed: mx.Dtype,
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[mx.Dtype],
        init_value: float | None = None,
    ) -> list[mx.array]:
        """Run ``blocks`` blocks of `BLOCK` threads.

        Args:
            shapes, dtypes: of the outputs.
            init_value: what the outputs are filled with before; None: nothing.
        """
        if self._kernel is None:
            self._kernel = mx.fast.cuda_kernel(self._name, self._inputs, self._outputs, self._source, _HEADER)
        return self._kernel(
            inputs=list(arrays),
            template=[("T", typed)],
            grid=(blocks * BLOCK, 1, 1),
            threadgroup=(BLOCK, 1, 1),
            output_shapes=[tuple(shape) for shape in shapes],
            output_dtypes=list(dtypes),
            init_value=init_value,
        )
