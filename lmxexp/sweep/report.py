"""What a sweep says at its end: its points, in ``points.csv`` too, and the comparison of its arms or a card."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmxexp.cli import errors
from lmxexp.sweep.ledger import OUTCOME_FILE, Outcome, read_outcome
from lmxexp.sweep.progress import STYLE

POINTS_FILE = "points.csv"

_MOST = 20
"""Points that are shown of those that ended well, and of the others."""

_NOT_REPEATABLE = ("seconds", "perf/", "mem/", "status", "error")
"""Entries of a summary that a repetition does not give again to the bit, or that stand in columns of their own."""


@dataclass(frozen=True)
class Row:
    """A point at the end of a sweep."""

    num: int
    run_dir: Path
    overrides: Sequence[str]
    outcome: Outcome | None

    @property
    def status(self) -> str:
        return self.outcome.status if self.outcome else "not run"


def rows_of(directory: Path, planned: Sequence[Any] | None) -> list[Row]:
    """The points of a command.

    Args:
        directory: of the sweep.
        planned: by a sweeper of ours; None: every point with an outcome in the directory.
    """
    if planned is not None:
        entries = [(p.entry.num, directory / p.entry.dir, p.entry.overrides) for p in planned]
        return [Row(num, path, overrides, read_outcome(path)) for num, path, overrides in entries]
    found = []
    for path in directory.glob(f"*/{OUTCOME_FILE}"):
        number, outcome = path.parent.name.partition("_")[0], read_outcome(path.parent)
        if outcome is not None:
            found.append(Row(int(number) if number.isdecimal() else -1, path.parent, outcome.overrides, outcome))
    return sorted(found, key=lambda row: row.num)


def exit_code(rows: Sequence[Row]) -> int:
    """0 if every point has a result and none failed, 1 otherwise; that of the signal which stopped the sweep."""
    codes = [row.outcome.exit_code or int(not row.outcome.final) if row.outcome else 1 for row in rows]
    return max(codes, default=0)  # 128 and the signal's number, above all others


def write_points(directory: Path, rows: Sequence[Row]) -> Path:
    """``points.csv``: what each point came to, as far as a repetition comes to the same to the bit."""
    records = []
    for row in rows:
        summary = _summary(row.run_dir)
        metrics = {k: v for k, v in summary.items() if not k.startswith(_NOT_REPEATABLE)}
        score = row.outcome.score if row.outcome else math.inf
        records.append(
            {
                "point": row.num,
                **_by_key(row.overrides),
                "status": row.status,
                "score": repr(score),
                # The same point of a sweep elsewhere, or that has been moved, has the same row.
                "reason": _reason(row).replace(f"{row.run_dir}{os.sep}", ""),
                **metrics,
            }
        )
    columns = list(dict.fromkeys(key for record in records for key in record))
    path = directory / POINTS_FILE
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(records)
    os.replace(temporary, path)
    return path


def show(directory: Path, rows: Sequence[Row]) -> None:
    """Print the points, best first, and the comparison of the arms; where they have tasks, the card."""
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for column in ("#", "point", "status", "score", "reason"):
        table.add_column(column, justify="right" if column in ("#", "score") else "left", overflow="fold")
    by_score = lambda row: (row.status != "ok", row.outcome.score if row.outcome else math.inf)
    shown = sorted(rows, key=by_score)
    if len(shown) > 2 * _MOST:
        good, bad = ([row for row in shown if (row.status == "ok") == ok] for ok in (True, False))
        shown = [*good[:_MOST], *bad[:_MOST]]
    for row in shown:
        outcome = row.outcome
        table.add_row(
            str(row.num),
            Text(" ".join(row.overrides)),
            Text(row.status, style=STYLE.get(row.status, "")),
            f"{outcome.score:.4f}" if outcome and math.isfinite(outcome.score) else "",
            Text(_reason(row)),
        )
    console.print(table)
    if len(shown) < len(rows):
        console.print(Text(f"and {len(rows) - len(shown)} more, in {POINTS_FILE}", style="dim"))
    place = os.path.relpath(directory)
    place = str(directory) if place.startswith("..") else place
    if any(text.startswith("task=") for row in rows for text in row.overrides):
        _say(_card, "the card could not be made", directory, place, console)
    elif sum(row.status == "ok" for row in rows) > 1:
        _say(_compare, "the arms could not be compared", directory, place, console)
    console.print(Text.assemble(("everything is in ", "dim"), place), soft_wrap=True)


def _say(what: Callable[..., None], otherwise: str, directory: Path, place: str, console: Console) -> None:
    """The sweep is done, whatever cannot be said of it."""
    console.print()
    try:
        what(directory, shlex.quote(place), console)
    except Exception as error:
        errors.report(f"{otherwise}: {errors.describe(error)}")


def _compare(directory: Path, place: str, console: Console) -> None:
    """The arms, over their seeds."""
    from lmxexp.compare import table
    from lmxexp.compare.comparison import compare

    table.show(compare([directory]), console)
    more = f"python -m lmxexp.compare {place}"
    console.print(Text.assemble("\n", ("curves, plots and files: ", "dim"), more), soft_wrap=True)


def _card(directory: Path, place: str, console: Console) -> None:
    """The mixers, over their tasks: what they score in one says nothing beside what they score in another."""
    from lmxexp.card import table
    from lmxexp.card.read import read

    card = read([directory])
    lines = [*table.aligned(table.rows(card)).splitlines(), "", table.caveat(card), *card.notes]
    console.print(Text("\n".join(lines)), soft_wrap=True)
    more = f"python -m lmxexp.card {place}"
    console.print(Text.assemble("\n", ("pictures and files: ", "dim"), more), soft_wrap=True)


def _reason(row: Row) -> str:
    return (row.outcome.error if row.outcome else None) or ""


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (text.partition("=") for text in overrides)
    return {key: value for key, _, value in pairs}


def _summary(run_dir: Path) -> dict[str, Any]:
    try:
        return json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError):
        return {}
