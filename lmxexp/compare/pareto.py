"""Which arms no other beats in everything at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def front(points: Sequence[Sequence[float]] | np.ndarray, maximise: Sequence[bool] | None = None) -> list[int]:
    """The points that no other dominates: that is at least as good in every coordinate, and better in one.

    Args:
        points: (points, coordinates). One with a nan is never on the front and dominates none.
        maximise: of each coordinate, whether more is better; by default less is.

    Returns:
        Indices by ascending first coordinate, in the order of the points among equals.
    """
    values = np.asarray(points, dtype=float)
    if values.size == 0:
        return []
    if maximise is not None:
        values = np.where(np.asarray(maximise, dtype=bool), -values, values)
    one, other = values[:, None], values[None]
    # Comparisons with nan are false, so such a point dominates none.
    dominated = ((other <= one).all(2) & (other < one).any(2)).any(axis=-1) | np.isnan(values).any(1)
    kept = np.flatnonzero(~dominated)
    first = np.asarray(points, dtype=float)[kept, 0]
    return [int(i) for i in kept[np.argsort(first, kind="stable")]]
