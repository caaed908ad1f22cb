"""One live table of a sweep, read from its directory: it knows nothing of who runs the points."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lmxexp.logger.jsonl import FILE_NAME
from lmxexp.sweep.ledger import CONSOLE_FILE, Outcome, read_outcome

_EVERY = 0.5
"""Seconds between two looks."""
_TAIL = 4096
"""Bytes from the end of metrics.jsonl that hold its last line."""
_SHOWN = 8
"""Running points with a row of their own."""

STYLE = {"ok": "green", "diverged": "red", "failed": "red", "killed": "red", "stopped": "yellow", "pruned": "dim"}


@dataclass
class _Point:
    overrides: Sequence[str]
    steps: int
    outcome: Outcome | None = None
    at: dict[str, Any] | None = None
    """The last line of metrics.jsonl, of a point that runs."""
    said: tuple[int, str] | None = None
    """Attempt and status that were told of, or that were there before the sweep."""

    @property
    def status(self) -> str:
        return self.outcome.status if self.outcome else "waiting"

    @property
    def name(self) -> str:
        return " ".join(self.overrides) or "the point"


class Monitor:
    """Says at once how a point ended, and shows on a terminal who runs, how far, and how long it will take.

    Args:
        directory: of the sweep.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._points: dict[str, _Point] | None = None
        self._listed: set[str] = set()
        self._console: Console | None = None
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._began = time.monotonic()
        self._spent: list[float] = []

    def expect(self, points: Mapping[str, tuple[Sequence[str], int]]) -> None:
        """Begin to show these points: by directory, what distinguishes each and its training steps."""
        self._points = {name: _Point(overrides, steps) for name, (overrides, steps) in points.items()}
        done = 0
        for name, point in self._points.items():
            before = read_outcome(self._directory / name)
            point.said = (before.attempt, before.status) if before else None
            if before is not None and before.final:  # what is not will begin anew: it waits
                point.outcome = before
                done += 1
        terminal = sys.stdout.isatty()
        # The stream as it is now: while a point runs in this process, sys.stdout is its log.
        self._console = Console(file=sys.stdout, highlight=False)
        kept = f", {done} of them done before" if done else ""
        self._print(
            Text.assemble(
                (f"sweep {self._directory.name}", "bold"), f"  {len(points)} point{'s' * (len(points) != 1)}{kept}"
            )
        )
        if terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Say what is left to say, and leave the terminal as it was."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._look()
            self._thread = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY):
            self._look()

    def _look(self) -> None:
        for name, point in (self._points or {}).items():
            directory = self._directory / name
            if point.status in ("ok", "diverged"):
                continue
            outcome = read_outcome(directory)
            if outcome is None or (outcome.attempt, outcome.status) == point.said:
                continue
            point.outcome = outcome
            if outcome.status == "running":
                point.at = _last_line(directory / FILE_NAME)
                continue
            point.said = (outcome.attempt, outcome.status)
            if outcome.status != "paused":
                self._spent.append(outcome.seconds)
                self._say(point, directory)

    def _say(self, point: _Point, directory: Path) -> None:
        outcome = point.outcome
        assert outcome is not None
        assert self._points is not None
        ended = sum(p.outcome is not None and p.status not in ("running", "paused") for p in self._points.values())
        text = Text.assemble(
            (f"[{ended}/{len(self._points)}] ", "dim"), (f"{outcome.status:<8}", STYLE.get(outcome.status, "")), " "
        )
        text.append(point.name)
        if math.isfinite(outcome.score):
            text.append(f"  score {outcome.score:.4f}")
        text.append(f"  {_duration(outcome.seconds)}", "dim")
        if outcome.error:
            text.append(f"\n    {outcome.error}")
            if outcome.status in ("failed", "killed"):
                text.append(f" (output: {directory / CONSOLE_FILE})", "dim")
        if self._live is None and (left := self._left()) is not None:
            text.append(f", {_duration(left)} left", "dim")
        self._print(text)

    def _print(self, text: Text) -> None:
        assert self._console is not None
        self._console.print(text, soft_wrap=True)

    def _left(self) -> float | None:
        """Seconds, by the pace of the points that ended; None before the first."""
        points = list((self._points or {}).values())
        rest = sum(p.status in ("waiting", "running", "paused") for p in points)
        if not self._spent or not rest:
            return None
        at_once = max(1, sum(p.status == "running" for p in points))
        return rest * sum(self._spent) / len(self._spent) / at_once

    def _render(self) -> Group:
        points = list((self._points or {}).values())
        counts = Counter(p.status for p in points)
        failed = counts["failed"] + counts["diverged"] + counts["killed"]
        head = Text.assemble(
            (f"{counts['ok']} done", "green"), f" · {counts['running']} running · ",
            (f"{failed} failed", "red" if failed else "dim"), " · ",
        )  # fmt: skip
        if counts["pruned"]:
            head.append(f"{counts['pruned']} stopped early · ")
        head.append(f"{counts['waiting'] + counts['paused']} waiting · {_duration(time.monotonic() - self._began)}")
        if (left := self._left()) is not None:
            head.append(f", {_duration(left)} left")
        best = min(
            (p for p in points if p.status == "ok" and p.outcome and math.isfinite(p.outcome.score)),
            key=lambda p: p.outcome.score if p.outcome else math.inf,
            default=None,
        )
        if best is not None and best.outcome is not None:
            head.append(f" · best {best.outcome.score:.4f} {best.name}", "cyan")
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        for column in ("running", "step", "train/loss", "eval/loss", "tok/s"):
            table.add_column(column, justify="left" if column == "running" else "right")
        running = [p for p in points if p.status == "running"]
        for point in running[:_SHOWN]:
            at = point.at or {}
            table.add_row(
                Text(point.name),
                f"{at.get('step', 0)}/{point.steps}",
                *(
                    _number(at.get(key), digits)
                    for key, digits in (("train/loss", 4), ("eval/loss", 4), ("perf/tokens_per_s", 0))
                ),
            )
        if len(running) > _SHOWN:
            table.add_row(f"and {len(running) - _SHOWN} more")
        return Group(head, table)


def _number(value: Any, digits: int) -> str:
    return f"{value:,.{digits}f}" if isinstance(value, int | float) else ""


def _last_line(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            lines = file.read().split(b"\n")
        return json.loads(lines[-2])
    except (OSError, ValueError, IndexError):
        return None


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return (
        f"{hours}:{m:02}:{s:02}"
        if hours
        else f"{m}:{s:02}"
        if minutes
        else f"{seconds:.1f} s"
        if seconds < 10
        else f"{s} s"
    )
