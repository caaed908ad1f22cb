"""Rotary positions of a whole sequence, in a kernel of our own where there is one."""

import math
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp.ops import cuda
from lmxexp.ops.own_gradient import own_gradient


def rope(x: mx.array, theta: float) -> mx.array:
    """Turns elements i and i + C/2 of the position p by the angle ``p * theta ** (-2i / C)``; p counts from 0.

    As ``mx.fast.rope``, whose CUDA kernel takes two to five times as long for the way in which it goes through memory.
    This one reads and writes positions in the order in which projections have them, heads within.

    Shapes:
        ``(B, H, L, C)`` to the same, ``C`` even.
    """
    if _is_ours(x):
        return mx.swapaxes(cast(mx.array, _turned(math.log2(theta), 1.0)(mx.swapaxes(x, 1, 2))), 1, 2)
    return mx.fast.rope(x, x.shape[-1], traditional=False, base=theta, scale=1.0, offset=0)


def _is_ours(x: mx.array) -> bool:
    """Whether the kernel takes heads of this width."""
    return cuda.on_cuda() and x.shape[-1] % (2 * cuda.per_pack(x.dtype)) == 0


@cache
def _turned(log_theta: float, sign: float) -> own_gradient:
    """``(B, L, H, C)`` to the same."""

    @own_gradient
    def turned(x: mx.array) -> mx.array:
        if not cuda.usable():
            return x  # of the same shape: under `mx.vmap`, to be replaced
        B, L, H, C = x.shape
        settings, sizes = mx.array([log_theta, sign]), mx.array([B * L, L, H, C], mx.int32)
        n_threads = B * L * -(-H // 4) * (C // 2 // cuda.per_pack(x.dtype))
        blocks = -(-n_threads // cuda.BLOCK)
        return _TURN(x, settings, sizes, blocks=blocks, typed=x.dtype, shapes=[x.shape], dtypes=[x.dtype])[0]

    @turned.vjp
    def back(primals, cotangent, output):
        return _turned(log_theta, -sign)(cotangent)

    @turned.joined
    def of_several(n: int, x: mx.array) -> mx.array:
        return cast(mx.array, turned(x.reshape(-1, *x.shape[2:]))).reshape(x.shape)

    return turned


# A thread turns a few neighbouring pairs in some heads of a position: angles are computed once for those heads.
_TURN = cuda.Kernel(
    "rope",
    ["x", "settings", "sizes"],
    ["turned"],
    """
    constexpr int W = Pack<T>::size;
    constexpr int HEADS = 4;
    const int n_positions = sizes[0], length = sizes[1], n_heads = sizes[2], width = sizes[3];
    const int half = width / 2, packs = half / W, groups = (n_heads + HEADS - 1) / HEADS;
    const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long long position = thread / (packs * groups);
    if (position >= n_positions) return;
    const int i = static_cast<int>(thread % packs) * W;
    const int head = static_cast<int>(thread / packs % groups) * HEADS;
    const int end = head + HEADS < n_heads ? head + HEADS : n_heads;
    const float p = static_cast<float>(position % length);
    const T* from = x + position * n_heads * width + i;
    T* to = turned + position * n_heads * width + i;
    Pack<T> a[HEADS], b[HEADS];
    for (int h = 0; h < HEADS; h++) {
      if (head + h < end) {
        a[h] = load_pack(from + (head + h) * width);
        b[h] = load_pack(from + (head + h) * width + half);
      }
    }
    float s[W], c[W];
    for (int k = 0; k < W; k++) {
      sincosf(p * exp2f(-(static_cast<float>(i + k) / half) * settings[0]), &s[k], &c[k]);
      s[k] *= settings[1];
    }
    for (int h = 0; h < HEADS; h++) {
      if (head + h >= end) break;
      for (int k = 0; k < W; k++) {
        const float u = static_cast<float>(a[h].values[k]), v = static_cast<float>(b[h].values[k]);
        a[h].values[k] = static_cast<T>(u * c[k] - v * s[k]);
        b[h].values[k] = static_cast<T>(v * c[k] + u * s[k]);
      }
      store_pack(to + (head + h) * width, a[h]);
      store_pack(to + (head + h) * width + half, b[h]);
    }
    """,
)
