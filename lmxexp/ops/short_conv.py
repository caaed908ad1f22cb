"""A short causal convolution of each channel by itself."""

import mlx.core as mx

from lmxexp.ops.documents import documents


def causal_conv(
    x: mx.array,
    weight: mx.array,
    bias: mx.array | None = None,
    state: mx.array | None = None,
    segment_ids: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """``y[t] = sum_i weight[:, i] * x[t - (W - 1) + i] + bias``: the last tap is for the position itself.

    A sum of W shifted products, which is faster than ``mx.conv1d`` with one group a channel. Summed in fp32.

    Args:
        state: the last W - 1 inputs, as returned by the call before; None: zeros.
        segment_ids: taps that reach into another document (see `documents`) count as zero. A row's first document
            goes on from ``state``.

    Shapes:
        x ``(B, L, C)``, weight ``(C, W)``, bias ``(C,)``, state ``(B, W - 1, C)``, segment_ids ``(B, L)``; returns y
        ``(B, L, C)`` in the type of x, and the new state.

    Cost:
        ``2 W`` FLOPs an element.
    """
    B, L, C = x.shape
    W = weight.shape[1]
    if state is None:
        state = mx.zeros((B, W - 1, C), x.dtype)
    padded = mx.concatenate([state.astype(x.dtype), x], axis=1)
    weight = weight.astype(mx.float32)
    number = None
    if segment_ids is not None:
        number = mx.pad(documents(segment_ids), [(0, 0), (W - 1, 0)])  # the state is of the row's first document, 0
    y = None
    for i in range(W):
        tap = weight[:, i] * padded[:, i : i + L].astype(mx.float32)
        if number is not None and i < W - 1:
            tap = mx.where((number[:, i : i + L] == number[:, W - 1 :])[..., None], tap, 0.0)
        y = tap if y is None else y + tap
    assert y is not None
    if bias is not None:
        y = y + bias.astype(mx.float32)
    return y.astype(x.dtype), padded[:, L:]
