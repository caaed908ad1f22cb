"""The sweep that this process conducts: what every sweeper and launcher, ours or not, is watched and reported by.

Hydra tells of a sweep through callbacks alone: not every sweeper tells its end, and points may run in other processes.
So everything that is shown here is read from the sweep's directory.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, read_write

if TYPE_CHECKING:
    from lmxexp.sweep.planner import Planned
    from lmxexp.sweep.report import Row


class Session:
    """A sweep from its first to its last point.

    Args:
        directory: of the sweep.
    """

    def __init__(self, directory: Path):
        from lmxexp.sweep.progress import Monitor

        self.directory = directory
        self.monitor = Monitor(directory)
        self.planned: list[Planned] | None = None

    def rows(self) -> list[Row]:
        from lmxexp.sweep.report import rows_of

        return rows_of(self.directory, self.planned)

    def close(self) -> None:
        """Show nothing more: the terminal belongs to whoever prints next."""
        self.monitor.stop()

    def report(self) -> int:
        """Write and print what came out; the exit code."""
        from lmxexp.sweep.report import exit_code, show, write_points

        rows = self.rows()
        write_points(self.directory, rows)
        show(self.directory, rows)
        return exit_code(rows)


class Followed(Session):
    """A sweep of a sweeper that is not ours, Optuna's say: which points it will have shows as they come.

    Args:
        directory: of the sweep.
        sweeper: its name, for ``sweep.json``.
    """

    def __init__(self, directory: Path, sweeper: str):
        super().__init__(directory)
        self.sweeper, self._follower = sweeper, _Follower(self)

    def close(self) -> None:
        for row in self.rows():
            _end_if_killed(row)
        self._follower.stop()
        super().close()
        self._write_ledger()

    def _write_ledger(self) -> None:
        from lmxexp.sweep.ledger import Entry, Ledger

        book = Ledger(self.directory)
        known = {entry.dir for entry in book.entries}
        for row in self.rows():
            if row.outcome is not None and row.run_dir.name not in known:
                book.add(Entry(row.num, row.run_dir.name, row.outcome.identity, list(row.overrides), ""))
        if book.entries:
            book.write({"match": None, "tune": None, **book.facts, **facts(), "sweeper": self.sweeper})


class _Follower:
    """Says of each point how it ended; what it had come to before this command is not said again."""

    def __init__(self, followed: Session):
        self._followed = followed
        self._said = {row.run_dir: row.outcome for row in followed.rows()}
        self._out = sys.stdout  # as it is now: while a point runs in this process, sys.stdout is its log
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if not self._stopping.is_set():
            self._stopping.set()
            self._thread.join()
            self._look()

    def _watch(self) -> None:
        while not self._stopping.wait(0.5):
            self._look()

    def _look(self) -> None:
        for row in self._followed.rows():
            outcome = row.outcome
            if outcome is None or outcome.status == "running" or outcome == self._said.get(row.run_dir):
                continue
            self._said[row.run_dir] = outcome
            score = f"  score {outcome.score:.4f}" if math.isfinite(outcome.score) else ""
            reason = f"\n    {outcome.error}" if outcome.error else ""
            print(f"{outcome.status:<8} {' '.join(row.overrides)}{score}{reason}", file=self._out, flush=True)


def _end_if_killed(row: Row) -> None:
    """Whoever was killed has left its outcome as it was while it ran."""
    from lmxexp.cli.errors import is_config_error
    from lmxexp.sweep.ledger import locked, read_outcome, write_outcome

    if row.status != "running":
        return
    try:
        with locked(row.run_dir / ".lock", wait=0.0, who=f"the point {row.run_dir}"):
            outcome = read_outcome(row.run_dir)
            if outcome is not None and outcome.status == "running":
                killed = replace(outcome, status="killed", error="its process ended without a word", exit_code=1)
                write_outcome(row.run_dir, killed)
    except Exception as error:
        if not is_config_error(error):  # it is at work still
            raise


_current: Session | None = None
_command: list[str] = []


class SweepCallback(Callback):
    """Hydra's way to say that a run or a sweep begins; ``conf/hydra/default.yaml`` names it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keeps Hydra from writing this command's configuration over that of a run which is there, before the command
        is refused: it is what that run is resumed from."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # the directory's name may be of what was chosen
        try:
            directory = Path(str(config.hydra.run.dir))
        finally:
            hydra.cfg = before
        if (directory / "run.json").exists():
            with read_write(config.hydra):
                config.hydra.output_subdir = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _current
        from hydra.utils import get_class

        from lmxexp.sweep.sweeper import GridSweeper

        directory, sweeper = Path(str(config.hydra.sweep.dir)).absolute(), get_class(config.hydra.sweeper._target_)
        ours = issubclass(sweeper, GridSweeper)
        _current = Session(directory) if ours else Followed(directory, mode_of(config.hydra))


def mode_of(hydra: Any) -> str:
    """How a sweeper that is not ours chooses the points, by its name: ``optuna``."""
    return str(hydra.sweeper.get("_target_", "")).rpartition(".")[2].removesuffix("Sweeper").lower() or "sweep"


def command(argv: Sequence[str]) -> None:
    """A command line begins, typed like this; what an earlier one left in this process is forgotten."""
    global _current
    _current = None
    _command[:] = argv


def facts() -> dict[str, Any]:
    """What ``sweep.json`` says beside the points."""
    from lmxexp.record import command_line

    return {"command": command_line(_command or sys.argv)}


def expect(plan: Sequence[Planned]) -> None:
    """The points are known: show how they get on."""
    if _current is not None:
        _current.planned = list(plan)
        _current.monitor.expect({p.entry.dir: (p.entry.overrides, p.steps) for p in plan})


def began() -> bool:
    """Whether this command is a sweep that has begun: something may have run."""
    return _current is not None and (_current.planned is not None or bool(_current.rows()))


def stop() -> None:
    """The sweep is over, however it ended."""
    if _current is not None:
        _current.close()


def finish() -> int:
    """The report of the sweep, on disk and on the terminal; its exit code."""
    if _current is None or not began():
        return 0
    _current.close()
    return _current.report()
