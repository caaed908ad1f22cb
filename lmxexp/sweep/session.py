"""The sweep that this process conducts: what every sweeper and launcher, ours or not, is watched and reported by.

Hydra tells of a sweep through callbacks alone: not every sweeper tells its end, and points may run in other processes.
So everything that is shown here is read from the sweep's directory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

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

    def report(self) -> int:
        """Write and print what came out; the exit code."""
        from lmxexp.sweep.report import exit_code, show, write_points

        rows = self.rows()
        write_points(self.directory, rows)
        show(self.directory, rows)
        return exit_code(rows)


_current: Session | None = None
_command: list[str] = []


class SweepCallback(Callback):
    """Hydra's way to say that a sweep begins; ``conf/hydra/default.yaml`` names it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global _current
        _current = Session(Path(str(config.hydra.sweep.dir)).absolute())


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
    """Show nothing more: the terminal belongs to whoever prints next."""
    if _current is not None:
        _current.monitor.stop()


def finish() -> int:
    """The report of the sweep, on disk and on the terminal; its exit code."""
    if _current is None or not began():
        return 0
    _current.monitor.stop()
    return _current.report()
