"""The rows that batches are made of, and which of the tokens stand in them."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lmxexp.data.packing import Plan
from lmxexp.data.permutation import shuffled
from lmxexp.data.tokens import Tokens
from lmxexp.interfaces import Batch


class Rows(Protocol):
    """Rows of one length out of one split, by number."""

    choices: int
    """Rows there are, overlapping ones among them: numbers are below it."""
    per_epoch: int
    """Rows that hold the split once."""

    def nth(self, place: np.ndarray, epoch: np.ndarray, seed: int) -> np.ndarray:
        """The numbers of the rows at ``place``, below ``per_epoch``, of an epoch's cut."""
        ...

    def batch(self, numbers: np.ndarray) -> Batch:
        """The rows of these numbers, (n,), in this order."""
        ...


class Windows:
    """A row for every place in the tokens: ``seq_len`` inputs from there on, which documents run through.

    An epoch is as many windows as fit one after the other; what is left over, less than a window, is left out at the
    beginning and at the end, in each epoch otherwise.

    Args:
        tokens: more than ``seq_len``.
        seq_len: L.
        document_mask: whether the rows have ``segment_ids``, see `segments`.
    """

    def __init__(self, tokens: Tokens, seq_len: int, document_mask: bool):
        self._tokens, self._seq_len, self._document_mask = tokens, seq_len, document_mask
        self.choices = len(tokens) - seq_len
        self.per_epoch = (len(tokens) - 1) // seq_len

    def nth(self, place: np.ndarray, epoch: np.ndarray, seed: int) -> np.ndarray:
        left_over = len(self._tokens) - 1 - self.per_epoch * self._seq_len
        begin = shuffled(np.zeros_like(place), left_over + 1, seed, epoch)  # the first of an order is any of them
        return begin + place * self._seq_len

    def batch(self, numbers: np.ndarray) -> Batch:
        windows = self._tokens.windows(numbers, self._seq_len + 1)
        inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
        if not self._document_mask:
            return Batch(inputs, targets)
        starts = self._tokens.starts
        first = np.searchsorted(starts, numbers, "right")
        row, which = ragged(first, np.searchsorted(starts, numbers + self._seq_len, "right") - first)
        begins = np.zeros(windows.shape, np.int32)
        begins[row, starts[which] - numbers[row]] = 1
        return Batch(inputs, targets, *segments(begins))


class Packed:
    """The rows of a `Plan`. Their last targets may be padding, which has weight 0, as has a document's first token.

    Args:
        tokens: that the plan is of.
        plan: of rows of ``seq_len + 1`` tokens.
        document_mask: whether the rows have ``segment_ids``.
    """

    def __init__(self, tokens: Tokens, plan: Plan, document_mask: bool):
        self._tokens, self._plan, self._document_mask = tokens, plan, document_mask
        self.choices = self.per_epoch = plan.rows

    def nth(self, place: np.ndarray, epoch: np.ndarray, seed: int) -> np.ndarray:
        return place

    def batch(self, numbers: np.ndarray) -> Batch:
        plan, shape = self._plan, (len(numbers), self._plan.capacity)
        row, piece = ragged(plan.first[numbers], plan.first[numbers + 1] - plan.first[numbers])
        sizes = plan.sizes[piece].astype(np.int64)
        used = np.bincount(row, weights=sizes, minlength=len(numbers)).astype(np.int64)
        column = np.cumsum(sizes) - sizes - (np.cumsum(used) - used)[row]
        of, place = ragged(row * plan.capacity + column, sizes)
        tokens = np.zeros(shape, np.int32)
        tokens.reshape(-1)[place] = self._tokens.take(place + (plan.starts[piece] - row * plan.capacity - column)[of])
        begins = np.zeros(shape, np.int32)
        begins[row, column] = 1
        padded = np.flatnonzero(used < plan.capacity)
        begins[padded, used[padded]] = 1
        weights, segment_ids = segments(begins)
        weights *= np.arange(1, plan.capacity) < used[:, None]
        return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), weights, segment_ids if self._document_mask else None)


def ragged(first: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges ``[first[i], first[i] + n[i])`` one after the other: of each number, which range it is of, and it."""
    which = np.repeat(np.arange(len(n)), n)
    return which, np.arange(len(which)) + np.repeat(first - (np.cumsum(n) - n), n)


def segments(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and segment ids of rows, by where documents begin in them.

    The target at a document's end is the first token of the next: a model that is to keep documents apart knows nothing
    about it, so it has weight 0.

    Args:
        begins: (n, L + 1) int32, 1 at a document's first token and 0 elsewhere.

    Shapes: (n, L) float32; (n, L) int32.
    """
    return (1 - begins[:, 1:]).astype(np.float32), np.cumsum(begins[:, :-1], axis=1, dtype=np.int32)
