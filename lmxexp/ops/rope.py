"""Rotary positions of a whole sequence, in a kernel of our own where there is one."""

import math
from collections.abc import Sequence
from functools import cache
from typing import cast

import mlx.core as mx

from lmxexp.ops import cuda
from lmxexp.ops.own_gradient import own_gradient

_TABLE = 512
"""Angles of a block of threads, at most."""

_BLOCKS = 512
"""As many there should be, so that a short sequence is no work of a few."""


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
    return head_dim % (2 * cuda.per_pack(dtype)) == 0 and head_dim <= 2 * _TABLE


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
    at_once = max(1, min(_TABLE // (C // 2), B * L // _BLOCKS))
    return kernel(
        *arrays,
        numbers=[log_theta, sign, B * L, L, H, C, n_kv, at_once],
        blocks=-(-B * L // at_once),
        typed=dtype,
        shapes=shapes,
        dtypes=[dtype] * len(shapes),
    )


def _kernel(name: str, inputs: list[str], outputs: list[str], places: str, turned: str) -> cuda.Kernel:
    """A block of threads has a few positions: it computes their angles once, and then goes through all their heads, a
    thread a pack of each half of one.

    Args:
        places: source of the functions ``from`` and ``to``, of a position and a head; and what they need.
        turned: source of the number of heads that are turned, the first ones; the others are copied.
    """
    return cuda.Kernel(
        name,
        inputs,
        outputs,
        f"""
        constexpr int TABLE = {_TABLE};
        const int n_turned = {turned};
        {places}
        """
        + """
        constexpr int W = Pack<T>::size, AT_ONCE = 2;
        const int half = width / 2, packs = half / W;
        const long long first = static_cast<long long>(blockIdx.x) * at_once;
        const int count = n_positions - first < at_once ? static_cast<int>(n_positions - first) : at_once;
        __shared__ __align__(16) float sines[TABLE], cosines[TABLE];
        for (int i = threadIdx.x; i < count * half; i += blockDim.x) {
          const float p = static_cast<float>((first + i / half) % length);
          float s, c;
          sincosf(p * exp2f(-(static_cast<float>(i % half) / half) * log_theta), &s, &c);
          sines[i] = s * sign;
          cosines[i] = c;
        }
        __syncthreads();
        const int of_position = n_heads * packs, n = count * of_position;
        for (int begin = threadIdx.x; begin < n; begin += AT_ONCE * blockDim.x) {
          Pack<T> a[AT_ONCE], b[AT_ONCE];
          int position[AT_ONCE], head[AT_ONCE], i[AT_ONCE];
          for (int u = 0; u < AT_ONCE; u++) {
            const int at = begin + u * blockDim.x;
            position[u] = at / of_position;
            head[u] = at % of_position / packs;
            i[u] = at % of_position % packs * W;
            if (at < n) {
              a[u] = load_pack(from(first + position[u], head[u]) + i[u]);
              b[u] = load_pack(from(first + position[u], head[u]) + i[u] + half);
            }
          }
          for (int u = 0; u < AT_ONCE; u++) {
            if (begin + u * blockDim.x >= n) break;
            if (head[u] < n_turned) {
              for (int k = 0; k < W; k++) {
                const float s = sines[position[u] * half + i[u] + k], c = cosines[position[u] * half + i[u] + k];
                const float x = static_cast<float>(a[u].values[k]), y = static_cast<float>(b[u].values[k]);
                a[u].values[k] = static_cast<T>(x * c - y * s);
                b[u].values[k] = static_cast<T>(y * c + x * s);
              }
            }
            store_pack(to(first + position[u], head[u]) + i[u], a[u]);
            store_pack(to(first + position[u], head[u]) + i[u] + half, b[u]);
          }
        }
        """,
        numbers={
            **dict.fromkeys(["log_theta", "sign"], "float"),
            **dict.fromkeys(["n_positions", "length", "n_heads", "width", "n_kv", "at_once"], "int"),
        },
    )


_TURN = _kernel(
    "rope",
    ["x"],
    ["turned"],
    """
    auto from = [&](long long position, int h) { return x + (position * n_heads + h) * width; };
    auto to = [&](long long position, int h) { return turned + (position * n_heads + h) * width; };
    """,
    turned="n_heads",
)

_JOINED, _APART = (
    "auto {name} = [&](long long position, int h) {{ return qkv + (position * n_heads + h) * width; }};",
    """
    const int n_q = n_heads - 2 * n_kv;
    auto {name} = [&](long long position, int h) {{
      return h < n_q          ? q + (position * n_q + h) * width
             : h < n_q + n_kv ? k + (position * n_kv + h - n_q) * width
                              : v + (position * n_kv + h - n_q - n_kv) * width;
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
