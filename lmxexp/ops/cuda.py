"""Kernels of our own for CUDA devices. Each has a twin of MLX's operations, which every other device runs.

A kernel is written where a profile of the training step shows that MLX's operations move several times the memory that
the work needs: ``benchmarks/LOG.md`` has the figures.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import numpy as np

from lmxexp.ops import cuda_compiler

BLOCK = 256
"""Threads of a block, where a kernel says nothing else."""

_MLX_HEADERS = """
#include "mlx/backend/cuda/device/utils.cuh"
#include <cooperative_groups.h>
"""

_OWN_HEADERS = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
"""

_PACKS = """
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

// A pack of T, of values that have another type in memory.
template <typename T, typename S>
__device__ __forceinline__ Pack<T> load_pack_as(const S* from) {
  Pack<T> pack;
  for (int begin = 0; begin < Pack<T>::size; begin += Pack<S>::size) {
    const Pack<S> part = load_pack(from + begin);
    for (int k = 0; k < Pack<S>::size; k++) pack.values[begin + k] = static_cast<T>(part.values[k]);
  }
  return pack;
}

template <typename T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
  *reinterpret_cast<Pack<T>*>(to) = pack;
}

// As __expf, but what is below the least normal number is 0: __expf has several instructions for that alone.
__device__ __forceinline__ float exp_of(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return expf(x);
#endif
}
"""

_TYPES = {
    mx.float32: "float",
    mx.bfloat16: "__nv_bfloat16",
    mx.float16: "__half",
    mx.int32: "int",
    mx.uint32: "unsigned int",
    mx.int64: "long long",
}


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
        numbers: the names and CUDA's types, ``int`` or ``float``, of single numbers in ``source``. As arrays of eight
            bytes or less they would lie in the host's memory, where MLX keeps those: a microsecond or two away, at each
            look.
    """

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        source: str,
        numbers: Mapping[str, str] = MappingProxyType({}),
    ):
        # MLX finds what it has compiled by its name.
        version = hashlib.sha1(f"{_PACKS}{source}{dict(numbers)}".encode()).hexdigest()[:8]
        self._name, self._body = f"lmxexp_{name}_{version}", source
        self._inputs, self._outputs, self._numbers = list(inputs), list(outputs), dict(numbers)
        self._kernel: Any = None
        self._binaries: dict[tuple[str, ...], bytes | None] = {}

    def __call__(
        self,
        *arrays: mx.array,
        numbers: Sequence[int | float] = (),
        blocks: int,
        typed: mx.Dtype,
        shapes: Sequence[Sequence[int]],
        dtypes: Sequence[mx.Dtype],
        init_value: float | None = None,
        threads: int = BLOCK,
    ) -> list[mx.array]:
        """Run ``blocks`` blocks of threads.

        Args:
            numbers: in their order.
            shapes, dtypes: of the outputs.
            init_value: what the outputs are filled with before; None: nothing.
            threads: of a block, at most 1024.
        """
        where: Any = {"grid": (blocks * threads, 1, 1), "threadgroup": (threads, 1, 1), "init_value": init_value}
        where |= {"output_shapes": [tuple(shape) for shape in shapes], "output_dtypes": list(dtypes)}
        types = tuple(_TYPES.get(dtype, "") for dtype in (typed, *(a.dtype for a in arrays), *dtypes))
        if types not in self._binaries:
            self._binaries[types] = self._compiled(types)
        binary = self._binaries[types]
        given = self.given(numbers)
        if binary is None:
            return self._by_mlx()(inputs=[*arrays, *(mx.array([n]) for n in given)], template=[("T", typed)], **where)
        return mx.fast.precompiled_cuda_kernel(
            name=self._symbol(types),
            compiled_source=binary,
            inputs=list(arrays),
            scalars=given,
            ensure_row_contiguous=True,
            **where,
        )

    def given(self, numbers: Sequence[int | float]) -> list[int | float]:
        """As MLX takes them: it refuses a float that is not one of 32 bits."""
        kinds = zip(numbers, self._numbers.values(), strict=True)
        return [n if kind == "int" else float(np.float32(n)) for n, kind in kinds]

    def source(self, types: Sequence[str]) -> str:
        """What is compiled for ``T`` and the types of inputs and outputs, as CUDA calls them."""
        typed, *of_arrays = types
        const = [*["const "] * len(self._inputs), *[""] * len(self._outputs)]
        named = zip(const, of_arrays, [*self._inputs, *self._outputs], strict=True)
        arguments = ", ".join(
            [*(f"{c}{t}* {name}" for c, t, name in named), *(f"const {t} {name}" for name, t in self._numbers.items())]
        )
        head = f'extern "C" __global__ void {self._symbol(types)}({arguments})'
        return f"{_OWN_HEADERS}{_PACKS}\nusing T = {typed};\n{head} {{\n{self._body}\n}}\n"

    def _symbol(self, types: Sequence[str]) -> str:
        return f"{self._name}_{hashlib.sha1(' '.join(types).encode()).hexdigest()[:8]}"

    def _compiled(self, types: tuple[str, ...]) -> bytes | None:
        """None: MLX has to compile it, in this process and every other."""
        if os.environ.get("LMXEXP_PRECOMPILE") == "0" or "" in types:
            return None
        return cuda_compiler.binary_of(self.source(types))

    def _by_mlx(self) -> Any:
        if self._kernel is None:
            # It takes arrays alone.
            taken = "".join(f"const {t} {name} = {name}_given[0];\n" for name, t in self._numbers.items())
            inputs = [*self._inputs, *(f"{name}_given" for name in self._numbers)]
            header = _MLX_HEADERS + _PACKS
            self._kernel = mx.fast.cuda_kernel(self._name, inputs, self._outputs, taken + self._body, header)
        return self._kernel
