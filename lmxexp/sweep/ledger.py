"""The record of a sweep on disk: its points in ``sweep.json``, and how each ended in its ``outcome.json``."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any

from lmxexp.cli.errors import refuse

SWEEP_FILE, OUTCOME_FILE, CONSOLE_FILE = "sweep.json", "outcome.json", "console.log"
STOP_FILE = "stop"
"""Of a sweep with ``sweep.on_failure=stop``, once a point has failed: the points that have not begun do not."""

FINAL = ("ok", "diverged", "pruned")
"""Ends that are results: the same command would only come to the same one."""

_LOCK_SECONDS = 60.0
"""How long a point waits for the process of an interrupted sweep, which is writing its last checkpoint."""


class PointProcessError(RuntimeError):
    """The process of a point is no more, and left no word; the message says how it ended."""


@dataclass(frozen=True)
class Outcome:
    """How a point ended, the last time that it ran."""

    identity: str
    status: str
    """running, ok, diverged, failed, killed, stopped (by a signal), paused (at a rung) or pruned (there, for good)."""
    score: float = math.inf
    """What the sweep minimises; infinite for what is neither ok, paused nor pruned."""
    error: str | None = None
    overrides: list[str] = field(default_factory=list)
    """What distinguishes the point."""
    seconds: float = 0.0
    attempt: int = 1
    exit_code: int = 0
    step: int | None = None
    """Training steps done."""
    rungs: dict[str, float] = field(default_factory=dict)
    """The scores where it paused, by step."""

    @property
    def final(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True)
class Entry:
    """A point in ``sweep.json``."""

    num: int
    dir: str
    """Relative to the sweep's directory."""
    identity: str
    overrides: list[str]
    """What distinguishes it, short form; of a point that was added later, beside those that came with it."""
    asked: str = ""
    """What its budget was solved for, by which a repeated command finds the answer; empty without ``match``."""
    adjusted: dict[str, Any] = field(default_factory=dict)
    """What ``match`` solved for."""
    budget: dict[str, Any] | None = None


class Ledger:
    """``sweep.json``: the points of every command that was given for this directory.

    Points are added and never removed or renumbered; their directories are never given to another.

    Args:
        directory: of the sweep.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.facts: dict[str, Any] = {}
        self.entries: list[Entry] = []
        file = directory / SWEEP_FILE
        if file.is_file():
            try:
                content = json.loads(file.read_text())
                names = {f.name for f in fields(Entry)}
                self.entries = [Entry(**{k: v for k, v in e.items() if k in names}) for e in content.pop("points")]
            except (ValueError, KeyError, TypeError, AttributeError):
                refuse(f"{file} is damaged: give the sweep another name, sweep=NAME, or remove that file")
            self.facts = content

    def find(self, identity: str) -> Entry | None:
        return next((e for e in self.entries if e.identity == identity), None)

    def solved(self, asked: str) -> Entry | None:
        """A point whose budget was solved for the same question."""
        return next((e for e in self.entries if e.asked == asked and e.budget is not None), None)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)

    def next_num(self) -> int:
        """The number of the next point: none that an entry, or a directory without one, has."""
        taken = [e.num for e in self.entries]
        for path in self.directory.iterdir() if self.directory.is_dir() else ():
            number = path.name.partition("_")[0]
            if path.is_dir() and number.isdecimal():
                taken.append(int(number))
        return max(taken, default=-1) + 1

    def path(self, entry: Entry) -> Path:
        return self.directory / entry.dir

    def write(self, facts: Mapping[str, Any]) -> None:
        """Write ``sweep.json`` in one piece. What an earlier command said of the sweep stays unless it is said anew."""
        self.facts = {
            "name": self.directory.name,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **self.facts,
            **facts,
        }
        _write_json(self.directory / SWEEP_FILE, {**self.facts, "points": [asdict(e) for e in self.entries]})


def read_outcome(run_dir: Path) -> Outcome | None:
    """``outcome.json``, or None where the point never ended, or its file is of another make."""
    try:
        content = json.loads((run_dir / OUTCOME_FILE).read_text())
        names = {f.name for f in fields(Outcome)}
        known = {k: v for k, v in content.items() if k in names}
        rungs = {step: float(score) for step, score in known.get("rungs", {}).items()}
        return Outcome(**{**known, "score": float(content["score"]), "rungs": rungs})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_outcome(run_dir: Path, outcome: Outcome) -> None:
    """Write ``outcome.json`` in one piece; JSON knows no infinity, which is written as text."""
    run_dir.mkdir(parents=True, exist_ok=True)
    rungs = {step: _number(score) for step, score in outcome.rungs.items()}
    _write_json(run_dir / OUTCOME_FILE, {**asdict(outcome), "score": _number(outcome.score), "rungs": rungs})


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def unprune(run_dir: Path) -> None:
    """A point that was stopped early may go on: it is compared anew, or not at all."""
    outcome = read_outcome(run_dir)
    if outcome is not None and outcome.status == "pruned":
        write_outcome(run_dir, replace(outcome, status="paused", error=None))


@contextmanager
def locked(path: Path, *, wait: float = _LOCK_SECONDS, who: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system takes it back from a process that dies.

    Raises:
        ConfigError: another process holds it, still after ``wait`` seconds.
    """
    import fcntl

    deadline = time.monotonic() + wait
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    file.seek(0)
                    owner = file.read().strip()
                    refuse(
                        f"{who} is in use by another process{f' ({owner})' if owner else ''}: wait for it or stop it"
                    )
                time.sleep(0.1)
                continue
            except OSError as error:  # some network disks know no locks
                print(f"lmxexp: warning: {who} is not protected from a second process: {error}", file=sys.stderr)
            if not _is_still(path, file):  # whoever held it has removed it, perhaps with its directory
                continue
            file.truncate(0)
            file.write(f"pid {os.getpid()}")
            file.flush()
            yield
            return


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether a path names an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
