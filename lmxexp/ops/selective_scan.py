"""Mamba's selective state space, by a scan that puts positions together in pairs."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lmxexp.ops.chunks import affine_scan, scan_products
from lmxexp.ops.documents import starts
from lmxexp.ops.own_gradient import own_gradient


def selective_scan(
    x: mx.array,
    dt: mx.array,
    a: mx.array,
    b: mx.array,
    c: mx.array,
    state: mx.array | None = None,
    segment_ids: mx.array | None = None,
    chunk: int = 256,
) -> tuple[mx.array, mx.array]:
    """A state in which every element of every channel decays by itself.

    Position by position, for channel d and state element n: ``S[d, n] <- exp(dt_t[d] a[d, n]) S[d, n] + dt_t[d] x_t[d]
    b_t[n]``, ``y_t[d] = sum_n c_t[n] S[d, n]``. No product of matrices does that, so the states of all positions of a
    chunk are computed by `affine_scan`, in a depth logarithmic in its length; it multiplies decays, which are at most
    1, and never divides by them. Only the chunks, of which there are few, come one after another. fp32 inside.

    In training each chunk is computed anew in the backward pass: the states before the chunks are kept, and those of
    all positions exist for a chunk or two at a time.

    Args:
        x: inputs.
        dt: step sizes, positive.
        a: negative.
        b, c: what is written under, and what is read.
        state: S after the positions before; None: zeros.
        segment_ids: the state starts from zero at each border between documents.
        chunk: positions that are computed at once; memory and speed depend on it, the result does not.

    Shapes:
        x, dt ``(B, L, D)``; a ``(D, N)``; b, c ``(B, L, N)``; state ``(B, D, N)``; segment_ids ``(B, L)``. Returns y
        ``(B, L, D)`` in the type of x and the new state, fp32.

    Cost:
        `selective_scan_flops`. Memory for training: about ``20 B chunk D N`` fp32 numbers at a time (measured), and
        ``B L D N / chunk`` that stay.

    Source: Gu & Dao 2023, "Mamba", algorithm 2 and section 3.3.2, with ``dt b`` for the discretised b, as in their
        code; Blelloch 1990, "Prefix Sums and Their Applications".
    """
    B, _, D = x.shape
    if state is None:
        state = mx.zeros((B, D, a.shape[1]))
    left = [] if segment_ids is None else [mx.where(starts(segment_ids), 0.0, 1.0)]
    a = mx.broadcast_to(a, (B, *a.shape))
    y, after, _ = _chunk_by_chunk(chunk)(state, a, x, dt, b, c, *left)
    return y, after


def _chunk_by_chunk(chunk: int) -> Any:
    """`_scan` over chunks, one after another, with a gradient of its own: plain differentiation would keep the states
    of all positions. (`mx.checkpoint` would not, but would pad the gradient of every chunk to the whole length.)

    The function takes the state, a ``(B, D, N)`` and arrays along positions ``(B, L, ...)``; it returns y, the new
    state and the states before the chunks.
    """

    def cut(arrays: Sequence[mx.array], i: int) -> list[mx.array]:
        return [array[:, i * chunk : (i + 1) * chunk] for array in arrays]

    @own_gradient
    def run(state: mx.array, a: mx.array, *along: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        before, outputs = [], []
        for i in range(-(-along[0].shape[1] // chunk)):
            before.append(state)
            y, state = _scan(state, a, *cut(along, i))
            outputs.append(y)
        return mx.concatenate(outputs, axis=1), state, mx.stack(before, axis=1)

    @run.vjp
    def _backward(primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]):
        _, a, *along = primals
        d_y, d_state, _ = cotangents
        before = outputs[2]
        d_a, d_along = mx.zeros_like(a), []
        for i in reversed(range(before.shape[1])):
            # Without `depends`, MLX puts off the sums over states, as nothing waits for them, and keeps all states.
            here = mx.depends([before[:, i], a, *cut(along, i)], [d_state])
            _, (d_state, d_a_here, *d_here) = mx.vjp(_scan, here, [*cut([d_y], i), d_state])
            d_a = d_a + d_a_here
            (d_state,) = mx.depends([d_state], [d_a, *d_here])
            d_along.append(d_here)
        return d_state, d_a, *(mx.concatenate(list(pieces[::-1]), axis=1) for pieces in zip(*d_along, strict=True))

    @run.vmap
    def _several(inputs: Sequence[mx.array], axes: Sequence[int | None]):
        # What is mapped over joins the batch, or the gradient would be the plain one.
        n = next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
        rows = []
        for x, axis in zip(inputs, axes, strict=True):
            x = mx.broadcast_to(x, (n, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
            rows.append(x.reshape(-1, *x.shape[2:]))
        outputs: Any = run(*rows)
        return tuple(x.reshape(n, -1, *x.shape[1:]) for x in outputs), (0, 0, 0)

    return run


def _scan(
    state: mx.array, a: mx.array, x: mx.array, dt: mx.array, b: mx.array, c: mx.array, left: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """One chunk; ``left`` ``(B, L)`` is what remains of the state at each position, 0 where a document begins."""
    dt, b, c = (array.astype(mx.float32) for array in (dt, b, c))
    decay = mx.exp(dt[..., None] * a[:, None].astype(mx.float32))  # (B, L, D, N)
    if left is not None:
        decay = decay * left[..., None, None]
    added = (dt * x)[..., None] * b[:, :, None]
    states = affine_scan(decay[:, None], added[:, None], state[:, None], mx.multiply)[:, 0]
    y = (states @ c[..., None])[..., 0]
    return y.astype(x.dtype), states[:, -1]


def selective_scan_flops(seq_len: int, d_inner: int, d_state: int, chunk: int) -> int:
    """FLOPs of one `selective_scan` over a sequence, for each element of the state: two products that make its decay
    and its input, the scan's own (a product of two decays is one FLOP, a multiply-add two), the product with c."""
    whole, rest = divmod(seq_len, chunk)
    flops = 0
    for count, length in ((whole, chunk), (1, rest)):
        if length:
            decays, steps = scan_products(length)
            flops += count * (4 * length + decays + 2 * steps)
    return flops * d_inner * d_state
