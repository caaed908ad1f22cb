"""What recurrences computed chunk by chunk share: cutting, decays between positions, the state from chunk to chunk.

A decay is handed in as its logarithm g <= 0. Everything here adds logarithms up and never subtracts them, so a strong
decay neither overflows nor spoils the digits of a weak one after it; ``exp`` sees non-positive numbers only.
"""

from collections.abc import Callable

import mlx.core as mx

from lmxexp.ops.documents import starts

# A decay whose exponential is 0 in fp32. Finite, because infinity times the zero of a mask is not a number.
_RESET = -1e4


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()


def to_chunks(x: mx.array, chunk: int) -> mx.array:
    """``(B, H, L, ...) -> (B, H, N, chunk, ...)`` in fp32, filled up with zeros at the end."""
    B, H, L = x.shape[:3]
    n_chunks = -(-L // chunk)
    x = x.astype(mx.float32)
    if n_chunks * chunk > L:
        x = mx.pad(x, [(0, 0), (0, 0), (0, n_chunks * chunk - L)] + [(0, 0)] * (x.ndim - 3))
    return x.reshape(B, H, n_chunks, chunk, *x.shape[3:])


def from_chunks(x: mx.array, length: int) -> mx.array:
    """``(B, H, N, chunk, C) -> (B, H, length, C)``."""
    B, H, n_chunks, chunk, C = x.shape
    return x.reshape(B, H, n_chunks * chunk, C)[:, :, :length]


def reset_at_documents(log_decay: mx.array | None, segment_ids: mx.array | None) -> mx.array | None:
    """The decays with nothing left of the state at the first position of a document.

    Shapes:
        log_decay ``(B, H, L)``, or ``(B, H, L, C)`` per channel, B and H may be 1; None: no decay. segment_ids
        ``(B, L)``.
    """
    if segment_ids is None:
        return log_decay
    first = starts(segment_ids)[:, None]
    if log_decay is None:
        return mx.where(first, _RESET, 0.0)
    return mx.where(first if log_decay.ndim == 3 else first[..., None], _RESET, log_decay)


def decay_from_start(g: mx.array, axis: int) -> mx.array:
    """What is left at each position, itself included, of the state before the first."""
    return mx.exp(mx.cumsum(g, axis=axis))


def decay_to_end(g: mx.array, axis: int) -> mx.array:
    """What is left after the last position of what each one adds."""
    return mx.exp(mx.cumsum(g, axis=axis, reverse=True, inclusive=False))


def pairwise_decay(g: mx.array) -> mx.array:
    """``(..., n)`` to ``(..., n, n)``: what is left at position i of what j added, 0 for j after i.

    Source: Dao & Gu 2024, "Transformers are SSMs", listing 1 (segsum).
    """
    i = mx.arange(g.shape[-1])
    steps = mx.where(i[:, None] > i[None], g[..., :, None], 0.0)
    return mx.where(i[:, None] >= i[None], mx.exp(mx.cumsum(steps, axis=-2)), 0.0)


# Up to this size all blocks of a level are multiplied as one masked matrix: products of smaller ones are slower.
_BASE = 16


def decayed_products(x: mx.array, y: mx.array, g: mx.array) -> mx.array:
    """``sum_c x[i, c] y[j, c] decay[i, j, c]`` for j up to i, and 0 above the diagonal: a decay per channel.

    A decay between positions of two neighbouring blocks is a product: from j to the end of the first block, and from
    the start of the second to i. So each level of blocks, twice as wide as the one before, takes one product
    of matrices.

    Shapes:
        x, y, g ``(..., n, C)``; returns ``(..., n, n)``. Leading axes broadcast.

    Cost:
        `decayed_products_flops`.

    Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", section 4.3, has
        two levels, the inner one without products of matrices; Kimi Team 2025, "Kimi Linear", section 3, another two.
    """
    n = x.shape[-2]
    size = power_of_two(n)
    if size > n:
        x, y, g = (mx.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, size - n), (0, 0)]) for a in (x, y, g))
    return _products(x, y, g)[..., :n, :n]


def _products(x: mx.array, y: mx.array, g: mx.array) -> mx.array:
    n, C = x.shape[-2:]
    if n <= _BASE:
        return _small_products(x, y, g)
    half = n // 2
    blocks = _products(*(a.reshape(*a.shape[:-2], 2, half, C) for a in (x, y, g)))
    first, second = blocks[..., 0, :, :], blocks[..., 1, :, :]
    late = x[..., half:, :] * decay_from_start(g[..., half:, :], axis=-2)
    early = y[..., :half, :] * decay_to_end(g[..., :half, :], axis=-2)
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([late @ early.swapaxes(-1, -2), second], axis=-1)], axis=-2)


def _small_products(x: mx.array, y: mx.array, g: mx.array) -> mx.array:
    n = x.shape[-2]
    i = mx.arange(n)
    products = mx.where(i[:, None] == i[None], x @ y.swapaxes(-1, -2), 0.0)
    width = 1
    while width < n:
        blocks = g.reshape(*g.shape[:-2], n // width, width, g.shape[-1])
        late = x * decay_from_start(blocks, axis=-2).reshape(g.shape)
        early = y * decay_to_end(blocks, axis=-2).reshape(g.shape)
        block = i // width
        corners = (block[:, None] == block[None] + 1) & (block[:, None] % 2 == 1)
        products = products + mx.where(corners, late @ early.swapaxes(-1, -2), 0.0)
        width *= 2
    return products


def decayed_products_flops(n: int, head_dim: int) -> int:
    """FLOPs of one `decayed_products`."""
    n = power_of_two(n)
    if n <= _BASE:
        return 2 * n * n * head_dim * n.bit_length()
    return 2 * decayed_products_flops(n // 2, head_dim) + 2 * (n // 2) ** 2 * head_dim


# A few steps in a row cost less than putting them together in pairs.
_IN_A_ROW = 4


def affine_scan(
    p: mx.array, q: mx.array, state: mx.array, product: Callable[[mx.array, mx.array], mx.array]
) -> mx.array:
    """All of ``S_n = P_n S_{n-1} + Q_n``, given ``S_0``: pairs of steps are put together, recursively.

    Args:
        product: of P with a P or an S: ``mx.matmul``, or ``mx.multiply`` where P is diagonal.

    Shapes:
        p ``(B, H, N, C, C)`` or, for ``mx.multiply``, what broadcasts against q; q ``(B, H, N, C, M)``; state
        ``(B, H, C, M)``. Returns ``S_1 ... S_N``, as q.

    Cost:
        `scan_products`; in about ``2 log2(N)`` products after one another, instead of N.

    Source: Blelloch 1990, "Prefix Sums and Their Applications".
    """
    n = q.shape[2]
    if n <= _IN_A_ROW:
        states = []
        for i in range(n):
            state = product(p[:, :, i], state) + q[:, :, i]
            states.append(state)
        return mx.stack(states, axis=2)
    p_odd, q_odd = p[:, :, 1::2], q[:, :, 1::2]
    pairs = n // 2
    p_even, q_even = p[:, :, ::2], q[:, :, ::2]
    after_odd = affine_scan(
        product(p_odd, p_even[:, :, :pairs]), product(p_odd, q_even[:, :, :pairs]) + q_odd, state, product
    )
    before_even = mx.concatenate([state[:, :, None], after_odd], axis=2)[:, :, : n - pairs]
    after_even = product(p_even, before_even) + q_even
    both = mx.stack([after_even[:, :, :pairs], after_odd], axis=3).reshape(*q.shape[:2], 2 * pairs, *q.shape[3:])
    return both if n == 2 * pairs else mx.concatenate([both, after_even[:, :, pairs:]], axis=2)


def scan_products(n: int) -> tuple[int, int]:
    """Of an `affine_scan` over ``n`` steps: products of a P with a P, and of a P with an S or a Q."""
    if n <= _IN_A_ROW:
        return 0, n
    pairs = n // 2
    with_p, with_s = scan_products(pairs)
    return pairs + with_p, n + with_s
