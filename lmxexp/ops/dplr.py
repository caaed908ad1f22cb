"""A recurrence whose transition is a diagonal plus a matrix of rank one, parallel over chunks of the sequence."""

import mlx.core as mx

from lmxexp.ops.chunks import (
    affine_scan,
    decay_from_start,
    decay_to_end,
    decayed_products,
    decayed_products_flops,
    from_chunks,
    scan_products,
    to_chunks,
)
from lmxexp.ops.unit_lower import unit_lower_flops, unit_lower_inverse


def dplr(
    r: mx.array,
    log_w: mx.array,
    k: mx.array,
    v: mx.array,
    a: mx.array,
    b: mx.array,
    state: mx.array | None = None,
    chunk: int = 32,
) -> tuple[mx.array, mx.array]:
    """A memory of keys and values that forgets by channel and is corrected along one direction a position.

    Position by position, with ``w_t = exp(log_w_t)``:

        S  <- (diag(w_t) + b_t a_t^T) S + k_t v_t^T
        y_t = S^T r_t

    Within a chunk ``u_t = S_{t-1}^T a_t`` depends on the u before it through a triangular system (the WY form); over a
    chunk the state takes one affine step ``S <- P S + Q``, and the steps are put together by `affine_scan`. So all is
    products of matrices, and no loop goes over positions or chunks. fp32 inside. Any ``log_w <= 0`` is safe: sums of
    logarithms are exponentiated, never differences.

    With ``a = -k``, ``b = beta k`` this is the delta rule with the decay taken after the correction's reading.

    Args:
        log_w: logarithm of the decay of every channel of the keys.
        state: S after the positions before; None: zeros.
        chunk: positions that are computed at once; speed and rounding depend on it, the result does not.

    Shapes:
        r, log_w, k, a, b ``(B, H, L, C)``; v ``(B, H, L, M)``; state ``(B, H, C, M)``. Returns y ``(B, H, L, M)`` in
        the type of v and the new state, fp32.

    Cost:
        `dplr_flops`.

    Source: Peng et al. 2025, "RWKV-7 Goose with Expressive Dynamic State Evolution", section 4; Yang et al. 2024,
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", section 3.2, for the WY form. Our
        S is the transpose of RWKV's.
    """
    B, H, L, C = k.shape
    M = v.shape[-1]
    dtype = v.dtype
    if state is None:
        state = mx.zeros((B, H, C, M))
    if L == 1:
        y, state = _step(r, log_w, k, v, a, b, state)
        return y.astype(dtype), state
    chunk = min(chunk, L)
    r, g, k, v, a, b = (to_chunks(x, chunk) for x in (r, log_w, k, v, a, b))  # (B, H, N, c, C)
    # a_t reads the state after t - 1, as r_t does that after t: moved up by a row, both decay alike.
    readers = mx.stack([r, mx.concatenate([a[..., 1:, :], mx.zeros_like(a[..., :1, :])], axis=-2)])
    products = decayed_products(readers[:, None], mx.stack([k, b]), g)
    rk, rb = products[0]
    ak, ab = mx.concatenate([mx.zeros_like(products[1, ..., :1, :]), products[1, ..., :-1, :]], axis=-2)
    r_in = r * decay_from_start(g, axis=-2)
    a_in = a * mx.exp(mx.cumsum(g, axis=-2, inclusive=False))
    end = decay_to_end(g, axis=-2)
    k_out, b_out = ((x * end).swapaxes(-1, -2) for x in (k, b))
    left = mx.exp(g.sum(axis=-2))[..., None]
    # The chunk's u are w S + u, S being the state before the chunk.
    wu = unit_lower_inverse(-ab) @ mx.concatenate([a_in, ak @ v], axis=-1)

    def transition(of: slice) -> tuple[mx.array, mx.array]:
        moved = b_out[:, :, of] @ wu[:, :, of]
        return left[:, :, of] * mx.eye(C) + moved[..., :C], k_out[:, :, of] @ v[:, :, of] + moved[..., C:]

    before = state[:, :, None]
    if k.shape[2] > 1:
        after = affine_scan(*transition(slice(None, -1)), state, mx.matmul)
        before = mx.concatenate([before, after], axis=2)
    read = rb @ wu
    y = rk @ v + read[..., C:] + (r_in + read[..., :C]) @ before
    p, q = transition(slice(-1, None))
    return from_chunks(y, L).astype(dtype), (p @ before[:, :, -1:] + q)[:, :, 0]


def _step(
    r: mx.array, log_w: mx.array, k: mx.array, v: mx.array, a: mx.array, b: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One position, as the recurrence says."""
    r, log_w, k, v, a, b = (x.astype(mx.float32) for x in (r, log_w, k, v, a, b))
    u = a @ state
    state = mx.exp(log_w).swapaxes(-1, -2) * state + b.swapaxes(-1, -2) * u + k.swapaxes(-1, -2) * v
    return r @ state, state


def dplr_flops(seq_len: int, key_dim: int, value_dim: int, chunk: int) -> int:
    """FLOPs of one head's `dplr` over a sequence, without the state at its end, which training does not take."""
    if seq_len == 1:
        return 4 * key_dim * value_dim
    chunk = min(chunk, seq_len)
    n_chunks = -(-seq_len // chunk)
    both = key_dim + value_dim
    per_chunk = (
        4 * decayed_products_flops(chunk, key_dim)
        + unit_lower_flops(chunk)
        + 4 * chunk * chunk * value_dim  # a and r on the chunk's own keys and values
        + 4 * chunk * chunk * both  # the triangular system's solution, and reading it
        + 2 * chunk * key_dim * value_dim  # reading the state before the chunk
    )
    with_p, with_s = scan_products(n_chunks - 1)
    scan = 2 * key_dim * key_dim * (with_p * key_dim + with_s * value_dim)
    return n_chunks * per_chunk + (n_chunks - 1) * 2 * chunk * key_dim * (both + value_dim) + scan
