"""The tokens of one split: flat, in one or several parts, with the places where documents start."""

from collections.abc import Sequence

import numpy as np


class Tokens:
    """One long row of tokens, which may lie in several arrays, memory-mapped ones among them.

    Args:
        parts: 1-d arrays of unsigned integers, one after the other.
        starts: where each document's first token is, ascending int64, the first of them 0. A document reaches to the
            next one's start: what ends or joins documents belongs to the one before.
    """

    def __init__(self, parts: Sequence[np.ndarray], starts: np.ndarray):
        self.parts = [part for part in parts if len(part)]
        self.starts = starts
        self._begins = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._begins[-1])

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The tokens ``[start, stop)``, of the type they are kept in; a view where one part holds them."""
        first = int(np.searchsorted(self._begins, start, "right")) - 1
        pieces = []
        while start < stop:
            part, offset = self.parts[first], start - int(self._begins[first])
            pieces.append(part[offset : offset + stop - start])
            start += len(pieces[-1])
            first += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([*pieces, np.empty(0, np.uint16)])

    def windows(self, offsets: np.ndarray, length: int) -> np.ndarray:
        """(n, length) int32: the ``length`` tokens from each of the n ``offsets`` on."""
        if len(self.parts) == 1:
            return self.parts[0][offsets[:, None] + np.arange(length)].astype(np.int32)
        return np.stack([self.slice(int(o), int(o) + length).astype(np.int32) for o in offsets])

    def take(self, places: np.ndarray) -> np.ndarray:
        """The tokens at ``places``, of any shape, as int32."""
        if len(self.parts) == 1:
            return self.parts[0][places].astype(np.int32)
        which = np.searchsorted(self._begins, places, "right") - 1
        out = np.empty(np.shape(places), np.int32)
        for part in np.unique(which).tolist():
            here = which == part
            out[here] = self.parts[part][places[here] - self._begins[part]]
        return out
