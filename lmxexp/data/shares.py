"""Which of several sources each row of a mixture comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Shares:
    """Rows shared out to K sources in proportion to weights that may change along the way.

    The expected number of rows of source k among the first x, ``A_k(x)``, is the integral of its weight. The j-th row
    of a source is due where ``A_k`` is ``j + 1/2``, and the rows of all sources follow each other as they are due. So
    after any number of rows each source has had what it should, to within half as many rows as there are sources;
    nothing about it is random; and to know whose row number x is costs the same for any x.

    Args:
        begins: (P,) the rows, ascending from 0, at which the weights are given; after the last they stay.
        weights: (P, K), not negative; only their ratios count.
        linear: whether they change linearly in between; or else all at once.

    Source: sequencing by ideal due dates: Kubiak and Sethi, 1991, "A Note on Level Schedules for Mixed-Model Assembly
        Lines in Just-in-Time Production Systems"; there the ratios are constant.
    """

    def __init__(self, begins: Sequence[float], weights: np.ndarray, linear: bool):
        self._begins = np.asarray(begins, np.float64)
        self._weights = weights / weights.sum(axis=1, keepdims=True)
        lengths = np.diff(self._begins)[:, None]
        steps = np.diff(self._weights, axis=0) if linear else np.zeros((len(lengths), weights.shape[1]))
        self._slopes = np.vstack([steps / lengths, np.zeros((1, weights.shape[1]))])
        rows = self._weights[:-1] * lengths + steps * lengths / 2
        self._before = np.vstack([np.zeros((1, weights.shape[1])), np.cumsum(rows, axis=0)])

    def rows(self, first: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows ``first`` to ``first + n``: the source, and which of the source's rows it is; (n,) int64 each."""
        before, source, number = self._around(first, first + n)
        here = slice(first - int(before.sum()), first - int(before.sum()) + n)
        return source[here], number[here]

    def counts(self, n: int) -> np.ndarray:
        """How many of the first ``n`` rows are of each source, (K,) int64."""
        before, source, _ = self._around(n, n)
        return before + np.bincount(source[: n - int(before.sum())], minlength=len(before))

    def weights_at(self, row: int) -> np.ndarray:
        """(K,), of sum 1."""
        i = int(np.searchsorted(self._begins, row, "right")) - 1
        return self._weights[i] + self._slopes[i] * (row - self._begins[i])

    def _around(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """More than the rows ``first`` to ``end``, as they follow each other: how many rows of each source are before
        them, and of each its source and which of the source's rows it is."""
        margin = self._weights.shape[1]  # in rows: the counts of K sources are together within K / 2 of where they are
        before, after = (self._due_by(x) for x in (max(first - margin, 0), end + margin))
        source = np.repeat(np.arange(margin), after - before)
        number = np.concatenate([np.arange(b, a) for b, a in zip(before, after, strict=True)])
        due = np.concatenate(
            [self._due(k, np.arange(b, a)) for k, (b, a) in enumerate(zip(before, after, strict=True))]
        )
        order = np.lexsort((source, due))
        return before, source[order], number[order]

    def _due_by(self, x: int) -> np.ndarray:
        """(K,), of each source the rows that are due before row x."""
        i = int(np.searchsorted(self._begins, x, "right")) - 1
        d = x - self._begins[i]
        expected = self._before[i] + self._weights[i] * d + self._slopes[i] * d * d / 2
        n = np.floor(expected + 0.5)
        # The sum may have been rounded up to a whole number; while a weight is 0 that would be a row too many.
        return (n - (n - 0.5 > expected)).astype(np.int64)

    def _due(self, k: int, number: np.ndarray) -> np.ndarray:
        """Where the rows of source k with these numbers are due, (n,)."""
        i = np.searchsorted(self._before[:, k], number + 0.5, "left") - 1
        left, weight, slope = number + 0.5 - self._before[i, k], self._weights[i, k], self._slopes[i, k]
        root = weight + np.sqrt(np.maximum(weight * weight + 2 * slope * left, 0))
        # Nothing is left to wait for where a weight has just become positive.
        return self._begins[i] + np.divide(2 * left, root, out=np.zeros_like(left), where=root > 0)
