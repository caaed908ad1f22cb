"""Linear attention with decay, parallel over chunks of the sequence."""

import mlx.core as mx

from lmxexp.ops.chunks import (
    affine_scan,
    decay_from_start,
    decay_to_end,
    decayed_products,
    decayed_products_flops,
    from_chunks,
    pairwise_decay,
    to_chunks,
)


def linear_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array | None = None,
    state: mx.array | None = None,
    chunk: int = 64,
) -> tuple[mx.array, mx.array]:
    """Attention without the softmax, whose keys and values add up in a matrix.

    Position by position, with ``a_t = exp(log_decay_t)``: ``S <- a_t S + k_t v_t^T``, ``y_t = S^T q_t``. Positions of
    one chunk meet in products of matrices, chunks through the state between them. fp32 inside. Any ``log_decay <= 0``
    is safe: sums of logarithms are exponentiated, never differences.

    Args:
        log_decay: per head or per channel of the keys; None: nothing is forgotten.
        state: S after the positions before; None: zeros.
        chunk: positions that are computed at once; speed and rounding depend on it, the result does not.

    Shapes:
        q, k ``(B, H, L, C)``; v ``(B, H, L, M)``; log_decay ``(B, H, L)`` or ``(B, H, L, C)``, its B and H may be 1;
        state ``(B, H, C, M)``. Returns y ``(B, H, L, M)`` in the type of v and the new state, fp32.

    Cost:
        `linear_attention_flops`.

    Source: Katharopoulos et al. 2020, "Transformers are RNNs", eqs. 10-12; Yang et al. 2024, "Gated Linear Attention
        Transformers with Hardware-Efficient Training", eqs. 1-4.
    """
    B, H, L, C = k.shape
    M = v.shape[-1]
    dtype = v.dtype
    if state is None:
        state = mx.zeros((B, H, C, M))
    chunk = min(chunk, L)
    q, k, v = (to_chunks(x, chunk) for x in (q, k, v))
    if log_decay is None:
        products = mx.tril(q @ k.swapaxes(-1, -2))
        totals = k.swapaxes(-1, -2) @ v
        states = state[:, :, None] + mx.cumsum(totals, axis=2)
    else:
        g = to_chunks(log_decay, chunk)
        if g.ndim == 4:
            products = (q @ k.swapaxes(-1, -2)) * pairwise_decay(g)
            g = g[..., None]
        else:
            products = decayed_products(q, k, g)
        start = decay_from_start(g, axis=-2)
        totals = (k * decay_to_end(g, axis=-2)).swapaxes(-1, -2) @ v
        states = affine_scan(start[..., -1, :, None], totals, state, mx.multiply)
        q = q * start
    before = mx.concatenate([state[:, :, None], states[:, :, :-1]], axis=2)
    y = products @ v + q @ before
    return from_chunks(y, L).astype(dtype), states[:, :, -1]


def linear_attention_flops(seq_len: int, key_dim: int, value_dim: int, chunk: int, per_channel: bool = False) -> int:
    """FLOPs of one head's `linear_attention` over a sequence."""
    chunk = min(chunk, seq_len)
    n_chunks = -(-seq_len // chunk)
    one_product = decayed_products_flops(chunk, key_dim) if per_channel else 2 * chunk * chunk * key_dim
    return n_chunks * (one_product + 2 * chunk * chunk * value_dim + 4 * chunk * key_dim * value_dim)
