"""A `Comparison` for the eye, on a terminal."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmxexp.compare import tuned_words
from lmxexp.compare.cells import cells, failed_heading, failed_lines, title
from lmxexp.compare.comparison import Comparison
from lmxexp.compare.digits import says_chance
from lmxexp.compare.words import sentences

_PLAIN_WIDTH = 120
"""Columns of a file or pipe, which has no width of its own."""
_MOST_FAILED = 20
_STYLES = {"better": "green", "worse": "red", "no result": "yellow", "not comparable": "yellow"}


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print it: the table, the runs that do not count, warnings, and what all that says."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = console or Console(width=None if known else _PLAIN_WIDTH, highlight=False)

    def lines(heading: str, texts: list[str], style: str = "") -> None:
        if texts:
            console.print()
            console.print(Text(heading, style=f"bold {style}"))
        for text in texts:
            item = Table.grid(padding=(0, 1))
            item.add_row("-", Text(text))
            console.print(item)

    console.print(Text(title(comparison), style="bold"))
    console.print(_table(comparison))
    lines(failed_heading(comparison), failed_lines(comparison, _MOST_FAILED), "yellow")
    lines("warnings", comparison.warnings, "yellow")
    if comparison.tuning:
        lines(f"tuned: {comparison.tuning.key}", tuned_words.lines(comparison.tuning))
        console.print(_tuned(tuned_words.table(comparison.tuning)))
    lines("verdict", sentences(comparison))


def _table(comparison: Comparison) -> Table:
    """Two lines a cell where two numbers belong together, to fit into 100 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm\nn", overflow="fold")
    table.add_column(f"{comparison.metric} ± std\n95 % CI", no_wrap=True)
    table.add_column("difference\n95 % CI", no_wrap=True)
    table.add_column("verdict\np (Holm)", min_width=15)
    table.add_column(f"mismatch\n{comparison.budget}", justify="right", no_wrap=True)
    table.add_column("params\nFLOP/tok", justify="right", no_wrap=True)
    table.add_column("tokens/s\npeak GB", justify="right", no_wrap=True)
    for row, texts in zip(comparison.rows, cells(comparison), strict=True):
        arm, n, mean, ci, difference, _, _, params, flops, unequal, speed, peak = texts
        head, _, tail = difference.partition(" ")
        word = row.verdict.word if row.verdict else "baseline"
        verdict = Text(word, style=_STYLES.get(word, "")).append(
            f"\n{says_chance(row.p_holm)}" if row.p_holm is not None else ""
        )
        table.add_row(
            Text(arm).append(f"\n{n}", style="yellow" if " of " in n else "dim"),
            Text(f"{mean}\n{_tight(ci)}"),
            Text(f"{head}\n{_tight(tail)}"),
            verdict,
            unequal,
            f"{params}\n{flops}",
            f"{speed}\n{peak}",
        )
    return table


def _tuned(rows: list[list[str]]) -> Table:
    """Values of the setting down, arms across: there are fewer of these, as a rule."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for i, heading in enumerate(rows[0]):
        table.add_column(Text(heading), overflow="fold", justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _tight(interval: str) -> str:
    return interval.replace(", ", ",")
