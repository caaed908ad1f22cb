"""Softmax attention as a pure function."""

from collections.abc import Callable

import mlx.core as mx

from lmxexp.ops import cuda, exp
from lmxexp.ops.fused import is_mapped


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | None = None,
    bias: mx.array | None = None,
    softcap: Callable[[mx.array], mx.array] | None = None,
    sinks: mx.array | None = None,
    dropout: float = 0.0,
) -> mx.array:
    """Softmax attention; causal where no mask is given.

    The fused kernel does it unless the scores themselves are wanted (bias, softcap, sinks, dropout): then they are
    computed plainly, in fp32 from the product on. (The fused kernel takes sinks, but has no gradient for them.) So are
    few scores of several queries on a CPU, for which there is no such kernel, where MLX's softmax is slow.

    Args:
        scale: what the scores are multiplied by, usually ``head_dim ** -0.5``.
        mask: boolean, True where a query may look, at one position at least; None: causal, the queries being the last
            positions of the keys. Boolean and not additive, because an fp32 mask raises beside bf16 queries and a sum
            of masks can unmask the future.
        bias: added to the scaled scores, fp32.
        softcap: applied to the scaled scores, before bias and mask.
        sinks: ``(H,)`` scores of a key that is not there; takes part in the softmax and brings no value.
        dropout: probability of dropping an attention weight; 0 outside training.

    Shapes:
        q ``(B, H, L, C)``, k ``(B, K, S, C)``, v ``(B, K, S, M)`` with H a multiple of K, mask ``(L, S)`` or
        ``(B, 1, L, S)``, bias ``(H, L, S)``; returns ``(B, H, L, M)``.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1.
    """
    if bias is None and softcap is None and sinks is None and dropout == 0.0 and not _is_slow_fused(q, k):
        if mask is not None:
            visible = _as_the_kernel_takes_it(mask, q.dtype)
        else:
            visible = "causal" if q.shape[2] > 1 else None  # the last position sees all
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=visible)
    return _attend_plainly(q, k, v, scale=scale, mask=mask, bias=bias, softcap=softcap, sinks=sinks, dropout=dropout)


def _is_slow_fused(q: mx.array, k: mx.array) -> bool:
    """Whether the fused one's softmax would take longer than a few more operations do, as one query's would not."""
    few = q.shape[2] > 1 and q.size // q.shape[-1] * k.shape[2] <= exp.LARGEST
    return few and q.dtype == mx.float32 and exp.is_slow()


def _as_the_kernel_takes_it(mask: mx.array, dtype: mx.Dtype) -> mx.array:
    """For the fused kernel on CUDA additive: with a boolean one MLX computes all scores, in memory, in 2.7 times the
    time. All masked layers of a compiled step share the array.
    """
    # A population's would be differentiated, see `lmxexp.ops.fused`.
    if not cuda.on_cuda() or is_mapped() or dtype not in (mx.bfloat16, mx.float16):
        return mask
    nothing = mx.finfo(dtype).min / 2  # finite: -inf less -inf is no number
    return mx.where(mask, 0.0, nothing).astype(dtype)


def _attend_plainly(q, k, v, *, scale, mask, bias, softcap, sinks, dropout):
    B, H, L, C = q.shape
    K, S = k.shape[1:3]
    q = q.reshape(B, K, H // K, L, C)
    scores = (q @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) * scale  # (B, K, H/K, L, S)
    if softcap is not None:
        scores = softcap(scores)
    if bias is not None:
        scores = scores + bias.reshape(K, H // K, L, S)
    if mask is None:
        mask = causal_mask(L, S)
    scores = mx.where(mask if mask.ndim == 2 else mask[:, :, None], scores, -mx.inf)
    if sinks is None:
        weights = exp.softmax(scores)
    else:
        sink = mx.broadcast_to(sinks.astype(mx.float32).reshape(K, H // K, 1, 1), (*scores.shape[:-1], 1))
        weights = exp.softmax(mx.concatenate([scores, sink], axis=-1))[..., :-1]
    if dropout > 0.0:
        keep = mx.random.bernoulli(1.0 - dropout, weights.shape)
        weights = mx.where(keep, weights / (1.0 - dropout), 0.0)
    return (weights.astype(v.dtype) @ v[:, :, None]).reshape(B, H, L, v.shape[-1])


def causal_mask(n_q: int, n_k: int, *, window: int | None = None) -> mx.array:
    """``(n_q, n_k)`` boolean: the last ``n_q`` of ``n_k`` positions see themselves and what lies before, at most
    ``window`` positions with their own."""
    query = mx.arange(n_k - n_q, n_k)[:, None]
    key = mx.arange(n_k)[None]
    mask = key <= query
    return mask if window is None else mask & (query - key < window)


def segment_mask(segment_ids: mx.array) -> mx.array:
    """``(B, L)`` ids to ``(B, 1, L, L)`` boolean: True within one segment."""
    return (segment_ids[:, :, None] == segment_ids[:, None, :])[:, None]
