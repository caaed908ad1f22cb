"""The position before."""

import mlx.core as mx

from lmxexp.ops.documents import starts


def token_shift(
    x: mx.array, last: mx.array | None = None, segment_ids: mx.array | None = None
) -> tuple[mx.array, mx.array]:
    """What stood one position earlier, for each position, and what to hand to the next call as ``last``.

    Zeros stand before the first position, and before the first of every document (see `starts`).

    Args:
        last: the last position of the call before; None: zeros.

    Shapes:
        x ``(B, L, D)``, last ``(B, 1, D)``, segment_ids ``(B, L)``; returns ``(B, L, D)`` and ``(B, 1, D)``.

    Source: Peng et al. 2023, "RWKV: Reinventing RNNs for the Transformer Era", section 3.1.1.
    """
    if last is None:
        last = mx.zeros_like(x[:, :1])
    before = mx.concatenate([last.astype(x.dtype), x[:, :-1]], axis=1)
    if segment_ids is not None:
        before = mx.where(starts(segment_ids)[..., None], 0.0, before)
    return before, x[:, -1:]
