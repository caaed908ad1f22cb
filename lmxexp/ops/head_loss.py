"""The head's logits and their cross-entropy in one function, which keeps less of them and reads them less often."""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

from lmxexp import device
from lmxexp.ops import cuda, small_product
from lmxexp.ops.own_gradient import own_gradient

LOGITS_AT_ONCE = 1 << 28
"""Of whose gradient no more are made at a time: 512 MB in bf16."""

_ALIGNED = 64
"""Rows of the head's matrix come to a multiple of it on CUDA: of 50,257 logits a row's start is not aligned to more
than two bytes, and the matrix products take five times as long as with 50,304."""


def head_loss(h: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """``cross_entropy(h @ weight.T, targets)``, and the logits.

    Kept for the gradient are the logits in the type of ``h``; what is derived from them is fp32 and, on a GPU, never in
    memory as a whole. The gradient's columns are made a part at a time. The logits are not differentiated.

    Shapes:
        h ``(..., D)``, weight ``(V, D)``, targets ``(...)`` int32; returns the nll and the log of the softmax's
        denominator, both ``(...)`` fp32, and ``(..., V)`` logits.
    """
    nll, log_z, logits = cast(
        tuple[mx.array, mx.array, mx.array],
        _head_loss(h.reshape(-1, h.shape[-1]), weight, targets.reshape(-1)),
    )
    shape = targets.shape
    return nll.reshape(shape), log_z.reshape(shape), logits.reshape(*shape, -1)[..., : weight.shape[0]]


@own_gradient
def _head_loss(h: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """``(..., N, D)``, ``(..., V, D)``, ``(..., N)`` to nll and log_z ``(..., N)`` and logits, padded to whole rows."""
    n_logits, padded = weight.shape[-2], _padded(weight)
    small = small_product.takes(h, padded)
    logits = small_product.by_rows(h, padded) if small else h @ mx.swapaxes(padded, -1, -2)
    return *_nll(logits, targets, n_logits), logits


@_head_loss.vjp
def _head_loss_vjp(primals, cotangents, outputs):
    h, weight, targets = primals
    of_nll, of_log_z, _ = cotangents
    _, log_z, logits = outputs
    n_logits, padded = weight.shape[-2], _padded(weight)
    small = small_product.takes(h, padded)
    of_h: mx.array | None = None
    of_weight = []
    for first, count in _column_parts(logits):
        # Not before the part before it is through, or all of them would be in memory.
        log_z = log_z if of_h is None else mx.depends(log_z, of_h)
        part = _logit_gradient(logits, log_z, targets, of_nll, of_log_z, first, count, n_logits)
        columns = padded[..., first : first + count, :]
        of_weight.append(small_product.of_columns(part, h) if small else mx.swapaxes(part, -1, -2) @ h)
        of_part = small_product.by_columns(part, columns) if small else part @ columns
        if of_h is not None:
            of_part = of_h.astype(mx.float32) + of_part.astype(mx.float32)
        of_h = mx.depends(of_part, of_weight[-1])
    assert of_h is not None
    of_weight = mx.concatenate(of_weight, axis=-2) if len(of_weight) > 1 else of_weight[0]
    return of_h.astype(h.dtype), of_weight[..., :n_logits, :], mx.zeros_like(targets)


# Every member has a matrix of its own; all that follows takes leading axes.
_head_loss.takes_leading_axes()


def _padded(weight: mx.array) -> mx.array:
    """With rows of zeros after the last, as many as CUDA wants."""
    missing = -weight.shape[-2] % _ALIGNED
    if not cuda.usable() or weight.shape[-2] % 8 == 0:
        return weight
    return mx.concatenate([weight, mx.zeros((*weight.shape[:-2], missing, weight.shape[-1]), weight.dtype)], axis=-2)


def _column_parts(logits: mx.array) -> list[tuple[int, int]]:
    """First column and number of columns of each part."""
    width = logits.shape[-1]
    n_parts = -(-logits.size // LOGITS_AT_ONCE)
    count = -(-width // n_parts // _ALIGNED) * _ALIGNED
    return [(first, min(count, width - first)) for first in range(0, width, count)]


def _nll(logits: mx.array, targets: mx.array, n_logits: int) -> tuple[mx.array, mx.array]:
    """``(..., N, W)`` and ``(..., N)`` to nll and log_z, ``(..., N)`` fp32, of the first ``n_logits`` columns."""
    *lead, width = logits.shape
    if cuda.takes_rows(width, logits.dtype):
        nll, log_z = _NLL(
            *(logits, targets.astype(mx.int32)),
            numbers=[n_logits, width],
            blocks=math.prod(lead),
            typed=logits.dtype,
            shapes=[lead, lead],
            dtypes=[mx.float32, mx.float32],
        )
        return nll, log_z
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1).astype(mx.float32)
    logits = logits[..., :n_logits]
    if device.backend() == "metal":  # in fp32; a CPU's would add up in the type of the logits
        nll = mx.fast.cross_entropy(logits, targets.astype(mx.int32))
        return nll, nll + picked
    log_z = mx.logsumexp(logits.astype(mx.float32), axis=-1)
    return log_z - picked, log_z


def _logit_gradient(logits, log_z, targets, of_nll, of_log_z, first: int, count: int, n_logits: int) -> mx.array:
    """``(..., N, count)``: of the columns from ``first`` on, in the type of the logits."""
    of_both = of_nll + of_log_z
    if cuda.takes_rows(logits.shape[-1], logits.dtype):
        lead = logits.shape[:-1]
        return _GRADIENT(
            *(logits, log_z, targets.astype(mx.int32), of_both, of_nll),
            numbers=[n_logits, logits.shape[-1], first, count],
            blocks=math.prod(lead),
            typed=logits.dtype,
            shapes=[(*lead, count)],
            dtypes=[logits.dtype],
        )[0]
    columns = mx.arange(first, first + count)
    p = mx.exp(logits[..., first : first + count].astype(mx.float32) - log_z[..., None]) * of_both[..., None]
    gradient = mx.where(columns == targets[..., None], p - of_nll[..., None], p)
    return gradient.astype(logits.dtype)


# A row's threads each keep the largest logit they have seen and the sum of exponentials relative to it.
_NLL = cuda.Kernel(
    "nll",
    ["logits", "targets"],
    ["nll", "log_z"],
    """
    constexpr int W = Pack<T>::size;
    const float nothing = __int_as_float(0xff800000);  // -inf
    const long long row = blockIdx.x;
    const T* x = logits + row * width;
    float largest = nothing, sum = 0.0f;
    // While all were -inf there is nothing to scale; a NaN is above nothing, and has to come through.
    auto rise = [&](float most) {
      if (largest != nothing) sum *= exp_of(largest - most);
      largest = most;
    };
    // Several loads are under way at a time.
    constexpr int AT_ONCE = 2;
    const int stride = blockDim.x * W, in_packs = n_logits / W * W;
    for (int begin = threadIdx.x * W; begin < in_packs; begin += AT_ONCE * stride) {
      Pack<T> packs[AT_ONCE];
      for (int u = 0; u < AT_ONCE; u++) {
        if (begin + u * stride < in_packs) packs[u] = load_pack(x + begin + u * stride);
      }
      float most = nothing;
      for (int u = 0; u < AT_ONCE; u++) {
        if (begin + u * stride >= in_packs) break;
        for (int k = 0; k < W; k++) most = fmaxf(most, static_cast<float>(packs[u].values[k]));
      }
      if (most > largest) rise(most);
      const float base = largest == nothing ? 0.0f : largest;  // -inf less itself would be NaN
      for (int u = 0; u < AT_ONCE; u++) {
        if (begin + u * stride >= in_packs) break;
        for (int k = 0; k < W; k++) sum += exp_of(static_cast<float>(packs[u].values[k]) - base);
      }
    }
    auto join = [&](float other_largest, float other_sum) {
      rise(fmaxf(largest, other_largest));
      sum += other_largest == nothing ? other_sum : other_sum * exp_of(other_largest - largest);
    };
    if (threadIdx.x < n_logits - in_packs) {
      const float v = static_cast<float>(x[in_packs + threadIdx.x]);
      join(v, v == nothing ? 0.0f : 1.0f);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      float other_largest = __shfl_xor_sync(0xffffffff, largest, offset);
      float other_sum = __shfl_xor_sync(0xffffffff, sum, offset);
      join(other_largest, other_sum);
    }
    __shared__ float all_largest[32], all_sums[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (lane == 0) {
      all_largest[warp] = largest;
      all_sums[warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < blockDim.x / 32; w++) {
        join(all_largest[w], all_sums[w]);
      }
      const float z = largest + logf(sum);
      const int target = targets[row] < 0 ? targets[row] + width : targets[row];  // as MLX counts
      log_z[row] = z;
      nll[row] = z - static_cast<float>(x[target]);
    }
    """,
    numbers={"n_logits": "int", "width": "int"},
)

_GRADIENT = cuda.Kernel(
    "logit_gradient",
    ["logits", "log_z", "targets", "of_both", "of_nll"],
    ["gradient"],
    """
    constexpr int W = Pack<T>::size;
    const long long row = blockIdx.x;
    const T* x = logits + row * width + first;
    T* out = gradient + row * count;
    const float z = log_z[row], both = of_both[row], one = of_nll[row];
    const int target = targets[row] - first;
    for (int i = threadIdx.x * W; i < count; i += blockDim.x * W) {
      Pack<T> pack = load_pack(x + i);
      const bool plain = first + i + W <= n_logits && (target < i || target >= i + W);
      for (int k = 0; k < W; k++) {
        float g = exp_of(static_cast<float>(pack.values[k]) - z) * both;
        if (!plain) {
          if (first + i + k >= n_logits) g = 0.0f;
          if (i + k == target) g -= one;
        }
        pack.values[k] = static_cast<T>(g);
      }
      store_pack(out + i, pack);
    }
    """,
    numbers={"n_logits": "int", "width": "int", "first": "int", "count": "int"},
)
