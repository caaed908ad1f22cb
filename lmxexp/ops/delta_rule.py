"""The gated delta rule, parallel over chunks of the sequence."""

import mlx.core as mx

from lmxexp.ops.chunks import (
    affine_scan,
    decay_from_start,
    decay_to_end,
    decayed_products,
    decayed_products_flops,
    from_chunks,
    pairwise_decay,
    scan_products,
    to_chunks,
)
from lmxexp.ops.unit_lower import unit_lower_flops, unit_lower_inverse


def gated_delta_rule(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    beta: mx.array,
    log_decay: mx.array | None = None,
    state: mx.array | None = None,
    chunk: int = 64,
) -> tuple[mx.array, mx.array]:
    """A linear memory of keys and values that corrects what it holds under a key instead of adding to it.

    Position by position, with ``a_t = exp(log_decay_t)``:

        S  <- a_t S                          forget
        S  <- S + beta_t k_t (v_t - S^T k_t)^T   move what is held under the key k_t towards v_t
        y_t = S^T q_t

    Within a chunk the corrections depend on one another through a triangular system, ``T = (I + A)^-1`` with
    ``A_ij = beta_i k_i.k_j decay_ij`` for j < i (the WY form); over a chunk the state takes one affine step
    ``S <- P S + Q``, and the steps are put together by `affine_scan`. So all is products of matrices, of which plain
    differentiation gives the gradient, and no loop goes over positions or chunks. fp32 inside.

    Keys should have a length of at most 1 and beta lie in [0, 2]: else the state may grow without bound.
    Any ``log_decay <= 0`` is safe: sums of logarithms are exponentiated, never differences.

    Args:
        log_decay: per head or per channel of the keys; None: nothing is forgotten.
        state: S after the positions before; None: zeros.
        chunk: positions that are computed at once; speed and rounding depend on it, the result does not.

    Shapes:
        q, k ``(B, H, L, C)``; v ``(B, H, L, M)``; beta ``(B, H, L)``; log_decay ``(B, H, L)`` or ``(B, H, L, C)``, its
        B and H may be 1; state ``(B, H, C, M)``. Returns y ``(B, H, L, M)`` in the type of v and the new state, fp32.

    Cost:
        `delta_rule_flops`.

    Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", eqs. 8-11;
        Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks", eqs. 8-10; Kimi Team 2025, "Kimi Linear", section 3
        (decay per channel). The scan over chunks is ours.
    """
    B, H, L, C = k.shape
    M = v.shape[-1]
    dtype = v.dtype
    if state is None:
        state = mx.zeros((B, H, C, M))
    if L == 1:
        y, state = _step(q, k, v, beta, log_decay, state)
        return y.astype(dtype), state
    chunk = min(chunk, L)
    q, k, v, beta = (to_chunks(x, chunk) for x in (q, k, v, beta[..., None]))
    g = None if log_decay is None else to_chunks(log_decay, chunk)
    products, k_in, k_out, q_in, left = _decayed(
        q, k, g
    )  # (2, B, H, N, c, c), 3 x (B, H, N, c, C), (B, H, N, C or 1, 1)
    inverse = unit_lower_inverse(beta * products[0])
    wu = inverse @ (beta * mx.concatenate([k_in, v], axis=-1))
    # What the chunk's positions add to the state is u - w S, S being the state before the chunk.
    w, u = wu[..., :C], wu[..., C:]
    before = state[:, :, None]
    if k.shape[2] > 1:
        p, add = _transition(left[:, :, :-1], k_out[:, :, :-1], w[:, :, :-1], u[:, :, :-1])
        before = mx.concatenate([before, affine_scan(p, add, state, mx.matmul)], axis=2)
    read = products[1] @ wu
    y = read[..., C:] + (q_in - read[..., :C]) @ before
    p, add = _transition(left[:, :, -1], k_out[:, :, -1], w[:, :, -1], u[:, :, -1])
    return from_chunks(y, L).astype(dtype), p @ before[:, :, -1] + add


def _decayed(q: mx.array, k: mx.array, g: mx.array | None) -> tuple[mx.array, ...]:
    """Products of keys, and of queries, with keys up to their own position, decayed in between; keys times what is left
    of the state before the chunk, and times what is left of them after it; queries times what is left of the state
    before; what is left of the state after it."""
    rows = mx.stack([k, q])
    if g is None:
        return mx.tril(rows @ k.swapaxes(-1, -2)), k, k, q, mx.ones((1, 1, k.shape[2], 1, 1))
    if g.ndim == 4:
        products = (rows @ k.swapaxes(-1, -2)) * pairwise_decay(g)
        g = g[..., None]
    else:
        products = decayed_products(rows, k, g)
    start, end = decay_from_start(g, axis=-2), decay_to_end(g, axis=-2)
    return products, k * start, k * end, q * start, start[..., -1, :, None]


def _transition(left: mx.array, k_out: mx.array, w: mx.array, u: mx.array) -> tuple[mx.array, mx.array]:
    """P and Q of the step ``S <- P S + Q`` over a chunk."""
    k_out = k_out.swapaxes(-1, -2)
    return left * mx.eye(k_out.shape[-2]) - k_out @ w, k_out @ u


def _step(
    q: mx.array, k: mx.array, v: mx.array, beta: mx.array, log_decay: mx.array | None, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One position, as the recurrence says."""
    q, k, v = (x.astype(mx.float32) for x in (q, k, v))
    if log_decay is not None:
        decay = mx.exp(log_decay.astype(mx.float32))
        state = state * (decay[..., None] if log_decay.ndim == 3 else decay.swapaxes(-1, -2))
    correction = beta[..., None].astype(mx.float32) * (v - k @ state)
    state = state + k.swapaxes(-1, -2) * correction
    return q @ state, state


def delta_rule_flops(seq_len: int, key_dim: int, value_dim: int, chunk: int, per_channel: bool = False) -> int:
    """FLOPs of one head's `gated_delta_rule` over a sequence, without the state at its end, which training does not
    take."""
    chunk = min(chunk, seq_len)
    n_chunks = -(-seq_len // chunk)
    both = key_dim + value_dim
    if seq_len == 1:
        return 4 * key_dim * value_dim
    one_product = decayed_products_flops(chunk, key_dim) if per_channel else 2 * chunk * chunk * key_dim
    per_chunk = (
        2 * one_product
        + unit_lower_flops(chunk)
        + 2 * chunk * chunk * both  # the triangular system's solution
        + 2 * chunk * chunk * both  # read within the chunk
        + 2 * chunk * key_dim * value_dim  # read from the state before it
    )
    with_p, with_s = scan_products(n_chunks - 1)
    scan = 2 * key_dim * key_dim * (with_p * key_dim + with_s * value_dim)
    return n_chunks * per_chunk + (n_chunks - 1) * 2 * chunk * key_dim * both + scan
