"""Attention to summaries of blocks, and the blocks that it points at."""

import mlx.core as mx

from lmxexp.ops.sort_rows import sort_rows


def attend_to_blocks(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, visible: mx.array, dropout: float = 0.0
) -> tuple[mx.array, mx.array]:
    """Softmax attention to one key and one value a block; a query that sees no block gets zeros.

    Args:
        visible: ``(B or 1, L, N)`` boolean: blocks that a query may see.
        dropout: probability of dropping a weight; 0 outside training.

    Shapes:
        q ``(B, H, L, C)``, k and v ``(B, K, N, C)``; returns ``(B, H, L, C)``, and the weights summed over the H / K
        queries that share a key, ``(B, K, L, N)`` fp32, undropped.

    Source: Yuan et al. 2025, "Native Sparse Attention", eqs. 8 and 10.
    """
    B, H, L, C = q.shape
    K = k.shape[1]
    grouped = q.reshape(B, K, H // K, L, C)
    scores = (grouped @ k[:, :, None].swapaxes(-1, -2)).astype(mx.float32) * scale
    visible = visible[:, None, None]
    # A row without blocks is uniform here and zero afterwards; -inf would make it, and its gradient, NaN.
    weights = mx.where(visible, mx.softmax(mx.where(visible, scores, -1e30), axis=-1), 0.0)
    importance = weights.sum(axis=2)
    if dropout > 0.0:
        weights = mx.where(mx.random.bernoulli(1.0 - dropout, weights.shape), weights / (1.0 - dropout), 0.0)
    return (weights.astype(v.dtype) @ v[:, :, None]).reshape(B, H, L, C), importance


def select_blocks(importance: mx.array, forced: mx.array, allowed: mx.array, n_selected: int) -> mx.array:
    """The ``n_selected`` most important of the allowed blocks, as a boolean of the shape of ``importance``.

    Forced blocks come first; equals of the last one that is taken are taken too. No gradient passes.

    Args:
        importance: ``(B, K, L, N)``, not negative.
        forced, allowed: ``(B or 1, 1, L, N)`` boolean.
    """
    rank = mx.where(forced, mx.inf, mx.where(allowed, mx.stop_gradient(importance), -1.0))
    n_blocks = rank.shape[-1]
    if n_blocks > n_selected:
        least = sort_rows(rank)[..., n_blocks - n_selected, None]
        allowed = allowed & (rank >= least)
    return mx.broadcast_to(allowed, rank.shape)
