"""CUDA kernels compiled for the host: what they compute, on a machine that has no such device.

A kernel whose threads wait for each other has a fiber for each thread of a block; of the others the threads run one
after the other. Blocks always do. So races between threads are not found, and nothing is said of speed.
"""

import ctypes
import hashlib
import shutil
import subprocess

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import cuda

HAS_DEVICE = cuda.on_cuda()
needs_device = pytest.mark.skipif(not HAS_DEVICE, reason="needs a CUDA device")
needs_kernels = pytest.mark.skipif(not (HAS_DEVICE or shutil.which("g++")), reason="needs a CUDA device, or g++")

_SHIM = """
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
static struct { int x; } blockIdx, blockDim, gridDim, threadIdx;
#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
typedef _Float16 __half;
struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    bits = std::isnan(f) ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  }
  operator float() const {
    uint32_t u = uint32_t(bits) << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
  }
};
#define __expf expf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __int_as_float(uint32_t i) {
  float f;
  memcpy(&f, &i, 4);
  return f;
}

constexpr int MOST = 1024, STACK = 1 << 16;
static ucontext_t scheduler, fibers[MOST];
static bool alive[MOST];
static char* stacks = nullptr;
static void rest() {
  int me = threadIdx.x;
  swapcontext(&fibers[me], &scheduler);
}
struct Barrier {
  int waiting = 0;
  long turn = 0;
  void wait(int n) {
    long mine = turn;
    if (++waiting == n) {
      waiting = 0;
      turn++;
    }
    while (turn == mine) rest();
  }
};
static Barrier of_block, of_warps[MOST / 32];
static void __syncthreads() { of_block.wait(blockDim.x); }
template <typename X>
static X __shfl_xor_sync(unsigned, X value, int offset) {
  static X slots[MOST];
  int me = threadIdx.x;
  slots[me] = value;
  of_warps[me / 32].wait(32);
  X other = slots[me ^ offset];
  of_warps[me / 32].wait(32);
  return other;
}
// What the instructions for tensor cores do, with registers as PTX's manual has them: 8 x 8 elements each, of which the
// threads name the rows, and a product of 16 x 16 and 16 x 8 elements.
template <typename T>
static void load_matrices(unsigned (&to)[4], const T* row, bool transposed) {
  static const T* rows[MOST];
  const int me = threadIdx.x, first = me / 32 * 32, lane = me % 32, g = lane / 4, t = lane % 4 * 2;
  rows[me] = row;
  of_warps[me / 32].wait(32);
  for (int i = 0; i < 4; i++) {
    const T* const* of = rows + first + 8 * i;
    const T& low = transposed ? of[t][g] : of[g][t];
    const T& high = transposed ? of[t + 1][g] : of[g][t + 1];
    to[i] = low.bits | uint32_t(high.bits) << 16;
  }
  of_warps[me / 32].wait(32);
}
template <typename T>
static void mma_16_8_16(float (&sums)[4], const unsigned (&x)[4], unsigned y0, unsigned y1) {
  static unsigned xs[MOST][4], ys[MOST][2];
  const int me = threadIdx.x, first = me / 32 * 32, lane = me % 32;
  memcpy(xs[me], x, sizeof(x));
  ys[me][0] = y0;
  ys[me][1] = y1;
  of_warps[me / 32].wait(32);
  for (int r = 0; r < 4; r++) {
    const int row = lane / 4, column = lane % 4 * 2 + r % 2;
    for (int k = 0; k < 16; k++) {
      uint32_t a = xs[first + row * 4 + k % 8 / 2][r / 2 + k / 8 * 2], b = ys[first + column * 4 + k % 8 / 2][k / 8];
      T of_a, of_b;
      of_a.bits = a >> k % 2 * 16;
      of_b.bits = b >> k % 2 * 16;
      sums[r] += float(of_a) * float(of_b);
    }
  }
  of_warps[me / 32].wait(32);
}
"""

_RUN = """
static void** arguments;
static void of_thread() {{
  {call};
  alive[threadIdx.x] = false;
  rest();
}}
extern "C" void run(void** given, int blocks, int threads) {{
  arguments = given;
  blockDim.x = threads;
  gridDim.x = blocks;
  if (!stacks) stacks = static_cast<char*>(malloc(size_t(MOST) * STACK));
  for (int b = 0; b < blocks; b++) {{
    blockIdx.x = b;
    for (int t = 0; t < threads; t++) {{
      threadIdx.x = t;
      if (!{waits}) {{
        {call};
        continue;
      }}
      getcontext(&fibers[t]);
      fibers[t].uc_stack.ss_sp = stacks + size_t(t) * STACK;
      fibers[t].uc_stack.ss_size = STACK;
      fibers[t].uc_link = &scheduler;
      makecontext(&fibers[t], of_thread, 0);
      alive[t] = true;
    }}
    for (int left = {waits} ? threads : 0; left > 0;) {{
      left = 0;
      for (int t = 0; t < threads; t++) {{
        if (!alive[t]) continue;
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t]);
        left += alive[t];
      }}
    }}
  }}
}}
"""

_NUMPY = {
    mx.float32: np.float32,
    mx.float16: np.float16,
    mx.bfloat16: np.uint16,
    mx.int32: np.int32,
    mx.uint32: np.uint32,
}


def taken_by_mlx(numbers):
    """It looks at what a kernel is given before it says that there is no device."""
    where = {"grid": (1, 1, 1), "threadgroup": (1, 1, 1), "output_shapes": [(1,)], "output_dtypes": [mx.float32]}
    with pytest.raises(RuntimeError, match="No CUDA back-end"):
        mx.fast.precompiled_cuda_kernel(name="none", compiled_source=b"", inputs=[], scalars=numbers, **where)


class OnHost:
    """In the place of `lmxexp.ops.cuda.Kernel.__call__`. It evaluates, so that nothing may be compiled around it.

    Args:
        place: a folder for what is compiled.
    """

    def __init__(self, place):
        self.place, self._compiled = place, {}
        self.calls = []
        """Name and number of inputs of each."""

    def __call__(self, kernel, *arrays, numbers=(), blocks, typed, shapes, dtypes, init_value=None, threads=cuda.BLOCK):
        types = tuple(cuda._TYPES[dtype] for dtype in (typed, *(a.dtype for a in arrays), *dtypes))
        self.calls.append((kernel._name, len(arrays)))
        read = [np.array(a.view(mx.uint16) if a.dtype == mx.bfloat16 else a) for a in map(mx.contiguous, arrays)]
        # NaN until they are written, in any of the types.
        before = 0xFF if init_value is None else 0
        assert init_value in (None, 0.0)
        written = [
            np.full((*s, np.dtype(_NUMPY[d]).itemsize), before, np.uint8).view(_NUMPY[d])[..., 0]
            for s, d in zip(shapes, dtypes, strict=True)
        ]
        numbers = kernel.given(numbers)
        taken_by_mlx(numbers)
        kinds = zip(numbers, kernel._numbers.values(), strict=True)
        given = [np.array([n], np.int32 if t == "int" else np.float32) for n, t in kinds]
        everything = [*read, *written, *given]
        pointers = (ctypes.c_void_p * len(everything))(*(a.ctypes.data for a in everything))
        self._function(kernel, types).run(pointers, blocks, threads)
        made = zip(written, dtypes, strict=True)
        return [mx.array(a).view(dtype) if dtype == mx.bfloat16 else mx.array(a) for a, dtype in made]

    def _function(self, kernel, types):
        source = kernel.source(types).replace("#include <cuda_bf16.h>", "").replace("#include <cuda_fp16.h>", "")
        name = hashlib.sha1((_SHIM + _RUN + source).encode()).hexdigest()[:16]
        if name not in self._compiled:
            pointers = [f"({t}*)arguments[{i}]" for i, t in enumerate(types[1:])]
            numbers = [f"*({t}*)arguments[{i}]" for i, t in enumerate(kernel._numbers.values(), len(pointers))]
            arguments = ", ".join(pointers + numbers)
            waits = "true" if "__sync" in source or "__shfl" in source else "false"
            source += _RUN.format(call=f"{kernel._symbol(types)}({arguments})", waits=waits)
            file = self.place / f"{name}.cpp"
            library = file.with_suffix(".so")
            if not library.exists():
                file.write_text(_SHIM + source)
                # Products are not fused with sums, as in the twins.
                options = ["-O1", "-ffp-contract=off", "-std=c++17", "-shared", "-fPIC", "-w"]
                subprocess.run(["g++", *options, file, "-o", library], check=True)
            self._compiled[name] = ctypes.CDLL(str(library))
        return self._compiled[name]


def install(monkeypatch, place):
    """Within a test, this machine has such a device, and nothing is compiled by MLX."""
    host = OnHost(place)
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx, "compile", lambda function, **_: function)
    monkeypatch.setattr(cuda.Kernel, "__call__", lambda kernel, *arrays, **where: host(kernel, *arrays, **where))
    return host
