"""A gated product, of which little is kept for the gradient."""

import math
from collections.abc import Sequence
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp import device
from lmxexp.ops import cuda
from lmxexp.ops.activation import activation
from lmxexp.ops.own_gradient import own_gradient


def gated(name: str, gate: mx.array, up: mx.array) -> mx.array:
    """``activation(gate) * up``.

    On a GPU it is computed in fp32 until it is written, in one kernel, and nothing is kept for the gradient but gate
    and up. (MLX keeps what the forward and the backward pass have in common, each in a kernel of its own.)

    Args:
        name: of the activation.

    Shapes:
        any, both the same.
    """
    return cast(mx.array, _gated(name)(gate, up)) if device.is_gpu() else activation(name)(gate) * up


@cache
def _gated(name: str) -> own_gradient:
    def product(gate: mx.array, up: mx.array) -> mx.array:
        wide = activation(name)(gate.astype(mx.float32)) * up.astype(mx.float32)
        return wide.astype(up.dtype)

    def gradient(primals, cotangent, output):
        gate, up = primals
        if name == "silu" and cuda.usable():
            return _silu_gradient(gate, up, cotangent)
        # Of two gradients that depend on other arrays the compiler finds nothing that they have in common: each is one
        # kernel then, which computes all that it needs, instead of several with arrays in fp32 between them.
        first = mx.depends([gate, up], [cotangent])
        of_gate = mx.vjp(lambda gate: product(gate, first[1]), first[:1], [cotangent])[1][0]
        second = mx.depends([gate, up], [of_gate])
        return of_gate, mx.vjp(lambda up: product(second[0], up), second[1:], [cotangent])[1][0]

    # Called by itself it is one kernel; within a function that is traced, MLX traces what it is made of.
    whole = own_gradient(mx.compile(product, shapeless=True))
    whole.vjp(gradient)
    whole.takes_leading_axes()
    return whole


def silu_gated_halves(both: mx.array) -> mx.array:
    """``gated("silu", gate, up)`` of gate and up side by side. On CUDA alone.

    Shapes:
        ``(..., 2 F)`` to ``(..., F)``.
    """
    return cast(mx.array, _silu_halves(both))


@own_gradient
def _silu_halves(both: mx.array) -> mx.array:
    shape = (*both.shape[:-1], both.shape[-1] // 2)
    return _run(_SILU_HALVES, [both], shape, [shape])[0]


@_silu_halves.vjp
def _silu_halves_gradient(primals, cotangent, output):
    return _run(_SILU_HALVES_GRADIENT, [primals, cotangent], cotangent.shape, [primals.shape])[0]


def _silu_gradient(gate: mx.array, up: mx.array, cotangent: mx.array) -> list[mx.array]:
    return _run(_SILU_GRADIENT, [gate, up, cotangent], gate.shape, [gate.shape, gate.shape])


def _run(
    kernel: cuda.Kernel, arrays: list[mx.array], of_up: Sequence[int], shapes: Sequence[Sequence[int]]
) -> list[mx.array]:
    *rows, width = of_up or (1,)
    dtype = arrays[0].dtype
    return kernel(
        *arrays,
        numbers=[math.prod(rows), width],
        blocks=-(-math.prod(of_up) // (cuda.per_pack(dtype) * cuda.BLOCK)),
        typed=dtype,
        shapes=shapes,
        dtypes=[dtype] * len(shapes),
    )


_NUMBERS = {"n_rows": "int", "width": "int"}  # of up

_SILU_GRADIENT = cuda.Kernel(
    "silu_gradient",
    ["gate", "up", "gradient"],
    ["of_gate", "of_up"],
    """
    constexpr int W = Pack<T>::size;
    const long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * W;
    const long long n = static_cast<long long>(n_rows) * width;
    if (i >= n) return;
    Pack<T> a = {}, b = {}, g = {};
    const bool whole = i + W <= n;
    if (whole) {
      a = load_pack(gate + i);
      b = load_pack(up + i);
      g = load_pack(gradient + i);
    } else {
      for (int k = 0; k < W; k++) {
        if (i + k >= n) break;
        a.values[k] = gate[i + k];
        b.values[k] = up[i + k];
        g.values[k] = gradient[i + k];
      }
    }
    // Always W times: of a loop whose length is not known, the packs would lie in memory instead of registers.
    for (int k = 0; k < W; k++) {
      const float x = static_cast<float>(a.values[k]), d = static_cast<float>(g.values[k]);
      const float s = 1.0f / (1.0f + __expf(-x));
      a.values[k] = static_cast<T>(d * static_cast<float>(b.values[k]) * s * (1.0f + x * (1.0f - s)));
      b.values[k] = static_cast<T>(d * x * s);
    }
    if (whole) {
      store_pack(of_gate + i, a);
      store_pack(of_up + i, b);
    } else {
      for (int k = 0; k < W; k++) {
        if (i + k >= n) break;
        of_gate[i + k] = a.values[k];
        of_up[i + k] = b.values[k];
      }
    }
    """,
    numbers=_NUMBERS,
)

# Each thread has a pack of gate and that of up beside it.
_PLACE = """
    constexpr int W = Pack<T>::size;
    const unsigned int pack = blockIdx.x * blockDim.x + threadIdx.x, packs = static_cast<unsigned int>(width) / W;
    const long long row = pack / packs, i = static_cast<long long>(pack) * W;
    if (row >= n_rows) return;
    const long long at = row * width + i;  // rows of both are twice as long
    Pack<T> a = load_pack(both + at), b = load_pack(both + at + width);
"""

_SILU_HALVES = cuda.Kernel(
    "silu_halves",
    ["both"],
    ["product"],
    _PLACE
    + """
    for (int k = 0; k < W; k++) {
      const float x = static_cast<float>(a.values[k]);
      a.values[k] = static_cast<T>(x / (1.0f + __expf(-x)) * static_cast<float>(b.values[k]));
    }
    store_pack(product + i, a);
    """,
    numbers=_NUMBERS,
)

_SILU_HALVES_GRADIENT = cuda.Kernel(
    "silu_halves_gradient",
    ["both", "gradient"],
    ["of_both"],
    _PLACE
    + """
    const Pack<T> g = load_pack(gradient + i);
    for (int k = 0; k < W; k++) {
      const float x = static_cast<float>(a.values[k]), d = static_cast<float>(g.values[k]);
      const float s = 1.0f / (1.0f + __expf(-x));
      a.values[k] = static_cast<T>(d * static_cast<float>(b.values[k]) * s * (1.0f + x * (1.0f - s)));
      b.values[k] = static_cast<T>(d * x * s);
    }
    store_pack(of_both + at, a);
    store_pack(of_both + at + width, b);
    """,
    numbers=_NUMBERS,
)
