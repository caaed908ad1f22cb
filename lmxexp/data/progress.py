"""How far the making of tokens is, on a terminal."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from lmxexp.data.corpus import Documents, Place

if TYPE_CHECKING:
    from lmxexp.data.shards import Totals

_AFTER = 1.0
"""Seconds: what is quicker is not worth a line."""


class Progress:
    """A bar on stderr with tokens, tokens a second, and what is left where the documents say how many they are
    (``total``, in the items of a `Place`). Nothing where stderr is no terminal.

    Args:
        split: whose tokens they are.
        documents: that are encoded.
        totals: what was done before.
    """

    def __init__(self, split: str, documents: Documents, totals: Totals):
        self._split, self._total = split, getattr(documents, "total", None)
        self._before = totals.count
        self._bar: Any = None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, totals: Totals, place: Place | None) -> None:
        spent = time.monotonic() - self._began
        if self._bar is None:
            if spent < _AFTER or not sys.stderr.isatty():
                return
            self._bar = self._started()
        counted = f"{totals.count / 1e6:,.1f}M tokens of {totals.documents:,} documents"
        speed = f"{(totals.count - self._before) / max(spent, 1e-9) / 1e6:.2f}M/s"
        at = {} if place is None or "items" not in place else {"completed": place["items"]}
        self._bar.update(self._task, counted=counted, speed=speed, **at)

    def _started(self) -> Any:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns: list[Any] = [
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.fields[counted]}"),
            TextColumn("{task.fields[speed]}"),
        ]
        if self._total is not None:
            columns.append(TimeRemainingColumn())
        bar = Progress(*columns, console=Console(stderr=True, highlight=False), transient=True)
        self._task = bar.add_task(f"tokens, {self._split}", total=self._total, counted="", speed="")
        bar.start()
        return bar
