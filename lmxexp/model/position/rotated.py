"""Queries and keys with their positions, for every mixer that has some."""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Position
from lmxexp.ops.documents import places


def rotated(
    position: Position | None, q: mx.array, k: mx.array, cache: Any, segment_ids: mx.array | None
) -> tuple[mx.array, mx.array]:
    """What `Position.rotate` makes of them.

    Args:
        position: None: they stay as they are.
        q, k: ``(B, H, L, C)`` and ``(B, K, L, C)``.
        cache: of what stands before them; None: nothing.
        segment_ids: ``(B, L)``, the documents; a position that counts from its document's beginning is told it.
    """
    if position is None:
        return q, k
    offset = 0 if cache is None else cache.offset
    if segment_ids is not None and getattr(position, "takes_places", False):
        return position.rotate(q, k, offset, places=places(segment_ids))  # pyright: ignore[reportCallIssue]
    return position.rotate(q, k, offset)
