"""Documents put whole into rows of one length."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from lmxexp.data.tokens import Tokens

BLOCK = 1 << 20
"""Documents that are packed at once: bounds the memory of packing, and costs at most a last row a block."""


@dataclass(frozen=True)
class Plan:
    """Which tokens stand in which row: the pieces of row ``r`` are ``[first[r], first[r + 1])``."""

    capacity: int
    """Tokens that a row has room for."""
    first: np.ndarray
    """(rows + 1,) int64."""
    starts: np.ndarray
    """(pieces,) int64, where each piece begins in the tokens."""
    sizes: np.ndarray
    """(pieces,) int32, its tokens."""
    cut: int
    """Documents that are longer than a row."""

    @property
    def rows(self) -> int:
        return len(self.first) - 1

    @property
    def efficiency(self) -> float:
        """The share of the rows' room that holds tokens; the rest is padding."""
        return float(self.sizes.sum(dtype=np.int64)) / (self.rows * self.capacity)


def packed(tokens: Tokens, capacity: int) -> Plan:
    """Rows that hold every document of ``tokens``, each document in one row if it is not longer than that.

    A longer one is cut into pieces of ``capacity`` tokens, of which each begins with the last token of the one before:
    so each of a document's tokens but the first is a target exactly once. Pieces are given to rows by best-fit
    decreasing, block by block of `BLOCK` documents, and stand in a row in the order of the text. It takes 12 bytes a
    piece and 8 a row.

    Source: Ding, Wang, Paolini, Kumar, Deoras, Roth, Soatto, 2024, "Fewer Truncations Improve Language Modeling",
        section 3 and algorithm 1. There the pieces of a long document do not overlap.
    """
    first, starts, sizes, cut = [np.zeros(1, np.int64)], [], [], 0
    for block in range(0, len(tokens.starts), BLOCK):
        edges = tokens.starts[block : block + BLOCK + 1]
        if block + BLOCK >= len(tokens.starts):
            edges = np.append(edges, len(tokens))
        begins, lengths, n_cut = _pieces(edges[:-1], np.diff(edges), capacity)
        row, n_rows = best_fit(lengths, capacity)
        order = np.argsort(row, kind="stable")
        starts.append(begins[order])
        sizes.append(lengths[order].astype(np.int32))
        first.append(first[-1][-1] + np.cumsum(np.bincount(row, minlength=n_rows)))
        cut += n_cut
    return Plan(capacity, np.concatenate(first), np.concatenate(starts), np.concatenate(sizes), cut)


def best_fit(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Best-fit decreasing: the largest first, each into the fullest row that has room for it, or else a new one.

    Rows with equal room are alike, so all pieces of one size are placed together, into all rows of one room at a time:
    the loops go over sizes, not over pieces.

    Args:
        sizes: (n,) in ``[1, capacity]``.
        capacity: of a row.

    Returns:
        The row of each, (n,) int64, and how many rows there are.
    """
    order = np.argsort(-sizes, kind="stable")
    row = np.empty(len(sizes), np.int64)
    with_room: list[deque[np.ndarray]] = [deque() for _ in range(capacity + 1)]
    n_with_room = np.zeros(capacity + 1, np.int64)
    n_rows = place = 0

    def put(rows: np.ndarray, room: int, size: int, end: int) -> int:
        """Fill rows that have equal room with pieces of one size, from ``place`` to ``end``; the place reached."""
        each = room // size
        reached = min(end, place + len(rows) * each)
        row[order[place:reached]] = np.repeat(rows, each)[: reached - place]
        whole, rest = divmod(reached - place, each)
        for some, left in ((rows[:whole], room - each * size), (rows[whole:], room - rest * size)):
            if len(some):
                with_room[left].append(some)
                n_with_room[left] += len(some)
        return reached

    counts = np.bincount(sizes, minlength=capacity + 1)
    for size in np.flatnonzero(counts)[::-1].tolist():
        end = place + int(counts[size])
        for room in (np.flatnonzero(n_with_room[size:]) + size).tolist():
            while place < end and with_room[room]:
                rows, needed = with_room[room].popleft(), -(-(end - place) // (room // size))
                if len(rows) > needed:
                    with_room[room].appendleft(rows[needed:])
                    rows = rows[:needed]
                n_with_room[room] -= len(rows)
                place = put(rows, room, size, end)
            if place == end:
                break
        if place < end:
            new = -(-(end - place) // (capacity // size))
            place = put(np.arange(n_rows, n_rows + new), capacity, size, end)
            n_rows += new
    return row, n_rows


def _pieces(begins: np.ndarray, lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Begins and sizes of the pieces of documents, in order, and how many documents had to be cut."""
    step = capacity - 1
    n = np.maximum(-(-(lengths - 1) // step), np.minimum(lengths, 1))  # a document of no token has no piece
    which = np.repeat(np.arange(len(lengths)), n)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)
    return begins[which] + nth * step, np.minimum(lengths[which] - nth * step, capacity), int(np.sum(n > 1))
