"""Rotary positions of a whole sequence, in a kernel of our own where there is one."""

import math
from collections.abc import Sequence
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


def turned_heads(qkv: mx.array, n_heads: int, n_kv_heads: int, theta: float) -> tuple[mx.array, mx.array, mx.array]:
    """Queries and keys with their positions, as `rope` gives them, and values, of their projections side by side.

    On CUDA alone, for heads that `takes`.

    Shapes:
        ``(B, L, (H + 2 K) C)`` to ``(B, H, L, C)``, ``(B, K, L, C)`` and ``(B, K, L, C)``.
    """
    B, L, width = qkv.shape
    n_all = n_heads + 2 * n_kv_heads
    apart = _turned_apart(math.log2(theta), n_kv_heads)(qkv.reshape(B, L, n_all, width // n_all))
    q, k, v = (mx.swapaxes(x, 1, 2) for x in cast(tuple[mx.array, ...], apart))
    return q, k, v


def takes(head_dim: int, dtype: mx.Dtype) -> bool:
    """Whether the kernels take heads of this width."""
    return head_dim % (2 * cuda.per_pack(dtype)) == 0


def _is_ours(x: mx.array) -> bool:
    return cuda.on_cuda() and takes(x.shape[-1], x.dtype)


@cache
def _turned(log_theta: float, sign: float) -> own_gradient:
    """``(B, L, H, C)`` to the same."""

    @own_gradient
    def turned(x: mx.array) -> mx.array:
        if not cuda.usable():
            return x  # of the same shape: under `mx.vmap`, to be replaced
        return _run(_TURN, [x], x.shape, log_theta, sign, [x.shape])[0]

    @turned.vjp
    def back(primals, cotangent, output):
        return _turned(log_theta, -sign)(cotangent)

    @turned.joined
    def of_several(n: int, x: mx.array) -> mx.array:
        return cast(mx.array, turned(x.reshape(-1, *x.shape[2:]))).reshape(x.shape)

    return turned


@cache
def _turned_apart(log_theta: float, n_kv: int) -> own_gradient:
    """``(B, L, H + 2 K, C)`` to ``(B, L, H, C)`` and twice ``(B, L, K, C)``."""

    @own_gradient
    def apart(qkv: mx.array) -> list[mx.array]:
        B, L, H, C = qkv.shape
        shapes = [(B, L, H - 2 * n_kv, C), (B, L, n_kv, C), (B, L, n_kv, C)]
        return _run(_TURN_APART, [qkv], qkv.shape, log_theta, 1.0, shapes, n_kv)

    @apart.vjp
    def together(primals, cotangents, outputs):
        shape = primals.shape
        return _run(_TURN_BACK_TOGETHER, list(cotangents), shape, log_theta, -1.0, [shape], n_kv)[0]

    return apart


def _run(
    kernel: cuda.Kernel,
    arrays: list[mx.array],
    whole: Sequence[int],
    log_theta: float,
    sign: float,
    shapes: Sequence[Sequence[int]],
    n_kv: int = 0,
) -> list[mx.array]:
    """Args:
    whole: the shape ``(B, L, heads, C)`` of all that is turned or copied.
    """
    B, L, H, C = whole
    dtype = arrays[0].dtype
    n_threads = B * L * -(-H // 4) * (C // 2 // cuda.per_pack(dtype))
    return kernel(
        *arrays,
        numbers=[log_theta, sign, B * L, L, H, C, n_kv],
        blocks=-(-n_threads // cuda.BLOCK),
        typed=dtype,
        shapes=shapes,
        dtypes=[dtype] * len(shapes),
    )


def _kernel(name: str, inputs: list[str], outputs: list[str], places: str, turned: str) -> cuda.Kernel:
    """A thread turns a few neighbouring pairs in some heads of a position: angles are computed once for those heads.

    Args:
        places: source of the functions ``from`` and ``to``, of ``position`` and a head; and what they need.
        turned: source of the number of heads that are turned, the first ones; the others are copied.
    """
    return cuda.Kernel(
        name,
        inputs,
        outputs,
        f"""
        constexpr int W = Pack<T>::size;
        constexpr int HEADS = 4;
        const int half = width / 2, packs = half / W, groups = (n_heads + HEADS - 1) / HEADS;
        const long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
        const long long position = thread / (packs * groups);
        if (position >= n_positions) return;
        const int i = static_cast<int>(thread % packs) * W;
        const int head = static_cast<int>(thread / packs % groups) * HEADS;
        const int end = head + HEADS < n_heads ? head + HEADS : n_heads;
        const int n_turned = {turned};
        {places}
        """
        + """
        const float p = static_cast<float>(position % length);
        Pack<T> a[HEADS], b[HEADS];
        for (int h = 0; h < HEADS; h++) {
          if (head + h < end) {
            a[h] = load_pack(from(head + h));
            b[h] = load_pack(from(head + h) + half);
          }
        }
        float s[W], c[W];
        for (int k = 0; k < W; k++) {
          sincosf(p * exp2f(-(static_cast<float>(i + k) / half) * log_theta), &s[k], &c[k]);
          s[k] *= sign;
        }
        for (int h = 0; h < HEADS; h++) {
          if (head + h >= end) break;
          if (head + h < n_turned) {
            for (int k = 0; k < W; k++) {
              const float u = static_cast<float>(a[h].values[k]), v = static_cast<float>(b[h].values[k]);
              a[h].values[k] = static_cast<T>(u * c[k] - v * s[k]);
              b[h].values[k] = static_cast<T>(v * c[k] + u * s[k]);
            }
          }
          store_pack(to(head + h), a[h]);
          store_pack(to(head + h) + half, b[h]);
        }
        """,
        numbers={
            **dict.fromkeys(["log_theta", "sign"], "float"),
            **dict.fromkeys(["n_positions", "length", "n_heads", "width", "n_kv"], "int"),
        },
    )


_TURN = _kernel(
    "rope",
    ["x"],
    ["turned"],
    """
    const long long first = position * n_heads * width + i;
    auto from = [&](int h) { return x + first + h * width; };
    auto to = [&](int h) { return turned + first + h * width; };
    """,
    turned="n_heads",
)

_JOINED, _APART = (
    "auto {name} = [&](int h) {{ return qkv + (position * n_heads + h) * width + i; }};",
    """
    const int n_q = n_heads - 2 * n_kv;
    auto {name} = [&](int h) {{
      return h < n_q          ? q + (position * n_q + h) * width + i
             : h < n_q + n_kv ? k + (position * n_kv + h - n_q) * width + i
                              : v + (position * n_kv + h - n_q - n_kv) * width + i;
    }};
    """,
)

_TURN_APART = _kernel(
    *("rope_apart", ["qkv"], ["q", "k", "v"], _JOINED.format(name="from") + _APART.format(name="to")),
    turned="n_heads - n_kv",
)
_TURN_BACK_TOGETHER = _kernel(
    *("rope_together", ["q", "k", "v"], ["qkv"], _APART.format(name="from") + _JOINED.format(name="to")),
    turned="n_heads - n_kv",
)
