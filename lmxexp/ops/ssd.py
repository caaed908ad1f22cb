"""Mamba-2's state space, parallel over chunks of the sequence."""

import mlx.core as mx

from lmxexp.ops.chunks import decay_from_start, decay_to_end, pairwise_decay

# Chunks whose states are passed on by one product of matrices. More are grouped, so that the cost stays linear.
_GROUP = 64


def ssd(
    x: mx.array,
    log_decay: mx.array,
    b: mx.array,
    c: mx.array,
    state: mx.array | None = None,
    chunk: int = 64,
) -> tuple[mx.array, mx.array]:
    """A state that decays by a scalar per head and position ("state space duality").

    Position by position, with ``a_t = exp(log_decay_t)``: ``S <- a_t S + x_t b_t^T``, ``y_t = S c_t``. Positions of one
    chunk meet in products of matrices (``c b^T`` once for all heads of a group, decayed for each of them); chunks
    through the states between them, which one masked product of (chunks x chunks) decays passes on, for groups of 64
    chunks at a time. Decays and the states between chunks are fp32, products within a chunk are of the type of x.
    Any ``log_decay <= 0`` is safe: sums of logarithms are exponentiated, never differences.

    Args:
        x: inputs, already times their step sizes.
        log_decay: at most 0; -1e4 forgets everything (see `lmxexp.ops.chunks.reset_at_documents`).
        b, c: what is written under, and what is read; shared by the ``H / G`` heads of a group.
        state: S after the positions before; None: zeros.
        chunk: positions that are computed at once; speed and rounding depend on it, the result does not.

    Shapes:
        x ``(B, L, H, P)``; log_decay ``(B, L, H)`` fp32; b, c ``(B, L, G, N)`` with H a multiple of G; state
        ``(B, H, P, N)``. Returns y ``(B, L, H, P)`` in the type of x and the new state, fp32.

    Cost:
        `ssd_flops`. Memory: ``L H chunk`` decays and ``L H P N / chunk`` elements of state between chunks.

    Source: Dao & Gu 2024, "Transformers are SSMs", section 6 and listing 1. Grouping the chunks is ours.
    """
    B, L, H, P = x.shape
    G, N = b.shape[2:]
    R = H // G
    chunk = min(chunk, L)
    x, log_decay, b, c = (_to_chunks(a, chunk) for a in (x, log_decay, b, c))
    n = x.shape[1]
    b, c = b.swapaxes(2, 3), c.swapaxes(2, 3)  # (B, n, G, chunk, N)
    g = log_decay.swapaxes(2, 3)  # (B, n, H, chunk)

    # Within a chunk: attention whose weights are products of c and b, decayed.
    weights = (c @ b.swapaxes(-1, -2)).astype(mx.float32)[:, :, :, None] * _per_group(pairwise_decay(g), G)
    y = weights.astype(x.dtype) @ x.reshape(B, n, chunk, G, R, P).transpose(0, 1, 3, 4, 2, 5)  # (B, n, G, R, chunk, P)
    y = y.astype(mx.float32).transpose(0, 1, 4, 2, 3, 5)

    # What each chunk adds to the state by its end; what it finds at its start; what its positions read of that.
    late = (x * decay_to_end(g, axis=-1).swapaxes(2, 3)[..., None]).astype(x.dtype)
    late = late.reshape(B, n, chunk, G, R * P).transpose(0, 1, 3, 4, 2)
    added = (late @ b).astype(mx.float32).reshape(B, n, H, P * N).swapaxes(1, 2)
    if state is not None:
        state = state.astype(mx.float32).reshape(B, H, P * N)
    start, end = _pass_on(added, g.sum(axis=-1).swapaxes(1, 2), state)
    start = start.swapaxes(1, 2).reshape(B, n, G, R * P, N).astype(c.dtype)
    read = (c @ start.swapaxes(-1, -2)).swapaxes(2, 3).reshape(B, n, chunk, G, R, P)
    y = y + read * decay_from_start(g, axis=-1).swapaxes(2, 3).reshape(B, n, chunk, G, R, 1)
    return y.astype(x.dtype).reshape(B, n * chunk, H, P)[:, :L], end.reshape(B, H, P, N)


def _to_chunks(x: mx.array, chunk: int) -> mx.array:
    """``(B, L, ...) -> (B, n, chunk, ...)``, filled up with zeros: a decay of 1, and nothing written."""
    B, L = x.shape[:2]
    n = -(-L // chunk)
    if n * chunk > L:
        x = mx.pad(x, [(0, 0), (0, n * chunk - L)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(B, n, chunk, *x.shape[2:])


def _per_group(x: mx.array, n_groups: int) -> mx.array:
    """``(B, n, H, ...) -> (B, n, G, H / G, ...)``."""
    return x.reshape(*x.shape[:2], n_groups, x.shape[2] // n_groups, *x.shape[3:])


def _pass_on(added: mx.array, g: mx.array, state: mx.array | None) -> tuple[mx.array, mx.array]:
    """The states at the starts of the chunks and at the end of the last.

    Shapes:
        added ``(B, H, n, X)``: what each chunk adds to the state; g ``(B, H, n)``: how the state decays over it; state
        ``(B, H, X)``. Returns ``(B, H, n, X)`` and ``(B, H, X)``.
    """
    B, H, n, X = added.shape
    size = min(n, _GROUP)
    groups = -(-n // size)
    if groups * size > n:
        added = mx.pad(added, [(0, 0), (0, 0), (0, groups * size - n), (0, 0)])
        g = mx.pad(g, [(0, 0), (0, 0), (0, groups * size - n)])
    added, g = added.reshape(B, H, groups, size, X), g.reshape(B, H, groups, size)
    # One row more than chunks: nothing at the start of the first, and after it what each leaves behind.
    states = mx.pad(pairwise_decay(g), [(0, 0)] * 3 + [(1, 0), (0, 0)]) @ added
    if groups > 1:
        before, _ = _pass_on(states[..., -1, :], g.sum(axis=-1), state)
    else:
        before = None if state is None else state[:, :, None]
    if before is not None:
        left = mx.exp(mx.pad(mx.cumsum(g, axis=-1), [(0, 0)] * 3 + [(1, 0)]))
        states = states + left[..., None] * before[..., None, :]
    return states[..., :-1, :].reshape(B, H, groups * size, X)[:, :, :n], states[:, :, -1, -1]


def ssd_flops(seq_len: int, n_heads: int, head_dim: int, d_state: int, n_groups: int, chunk: int) -> int:
    """FLOPs of the products of one `ssd` over a sequence."""
    chunk = min(chunk, seq_len)
    n_chunks = -(-seq_len // chunk)
    state = n_heads * head_dim * d_state
    within = chunk * chunk * (n_groups * d_state + n_heads * head_dim) + 2 * chunk * state
    return 2 * (n_chunks * within + state * _pass_on_products(n_chunks))


def _pass_on_products(n: int) -> int:
    """Multiply-adds of `_pass_on` per element of a state."""
    size = min(n, _GROUP)
    groups = -(-n // size)
    return groups * (size + 1) * size + (_pass_on_products(groups) if groups > 1 else 0)
