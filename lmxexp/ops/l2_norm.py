"""Vectors of length one."""

import mlx.core as mx


def l2_norm(x: mx.array, eps: float = 1e-6) -> mx.array:
    """``x / sqrt(sum(x^2) + eps)`` over the last axis, in fp32 whatever comes in.

    The default ``eps`` is that of the published implementations of the delta rule.
    """
    n = x.shape[-1]
    # The fused norm divides by the root of the mean.
    return mx.fast.rms_norm(x.astype(mx.float32), None, eps / n) * n**-0.5
