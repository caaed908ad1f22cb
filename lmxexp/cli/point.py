"""One point: what Hydra calls for a single run, and for each point of a sweep."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmxexp.cli import errors
from lmxexp.cli.resume import Plan
from lmxexp.cli.validate import check
from lmxexp.compose import complete


@dataclass
class Outcome:
    """How a single run ended."""

    exit_code: int
    message: str = ""
    error: BaseException | None = None
    """What it failed of, where its traceback was asked for."""


@dataclass
class Points:
    """Runs what Hydra composes: one run, or the points of a sweep. Launchers may send it to other processes.

    Args:
        argv: the command line as it was typed; it goes into the run's record.
        plan: for ``resume``.
        traceback: whether to show the tracebacks of errors, whatever the configuration says.
    """

    argv: list[str]
    plan: Plan | None = None
    traceback: bool = False
    outcome: Outcome | None = None
    """Of a single run."""
    process: int = field(default_factory=os.getpid)

    def __call__(self, cfg: DictConfig) -> float:
        """Run one point. It never raises an ``Exception``: the other points of a sweep go on.

        Returns:
            The score that a sweeper minimises, infinite for a point that failed.
        """
        hydra: Any = HydraConfig.get()
        sys.argv[:] = self.argv
        run_dir = Path(hydra.runtime.output_dir)
        if hydra.mode == RunMode.MULTIRUN:
            return self._point(cfg, hydra, run_dir)
        try:
            self.outcome = self._run(cfg, hydra, run_dir)
        except Exception as error:
            file = None if errors.is_config_error(error) else errors.write_traceback(error, run_dir)
            shown = error if self.traceback or (cfg.get("debug") or {}).get("traceback") else None
            self.outcome = Outcome(1, errors.describe(error, file), shown)
            if file is None:
                _remove_unused(run_dir)
        return 0.0

    def _run(self, cfg: DictConfig, hydra: Any, run_dir: Path) -> Outcome:
        complete(cfg, hydra.runtime.choices)
        typed = list(hydra.overrides.task)
        if self.plan is not None:
            cfg = self.plan.configuration(cfg)
            typed = [o.input_line or "" for o in self.plan.values]
        check(cfg, typed)

        from lmxexp.run import run  # MLX and all the rest: only where something is trained

        result = run(cfg, run_dir=run_dir)
        codes = {"ok": 0, "stopped": 128 + (result.signal or signal.SIGTERM)}
        return Outcome(codes.get(result.status, 1))

    def _point(self, cfg: DictConfig, hydra: Any, run_dir: Path) -> float:
        from lmxexp.sweep.point import run_point

        outcome = run_point(cfg, hydra, run_dir, traceback=self.traceback)
        if outcome.status == "stopped" and os.getpid() == self.process:
            # By a signal that is meant for the whole sweep, not for one of its points.
            raise SystemExit(outcome.exit_code)
        return outcome.score

    def steps(self, cfg: DictConfig, run_dir: Path) -> tuple[Any, Any]:
        """A point of a sweep, and its output, for whoever computes its steps and others' (`lmxexp.train.drive`)."""
        from lmxexp.sweep.ledger import CONSOLE_FILE
        from lmxexp.sweep.point import Output, point_steps

        sys.argv[:] = self.argv
        output = Output(run_dir / CONSOLE_FILE)
        hydra = HydraConfig.get()
        return point_steps(cfg, hydra, run_dir, output, traceback=self.traceback, side_by_side=True), output

    def finish(self) -> int:
        """Report what is left to report of a single run; the exit code of the process."""
        if self.outcome is None:
            return 0
        if self.outcome.message:
            errors.report(self.outcome.message, self.outcome.error)
        return self.outcome.exit_code


def _remove_unused(run_dir: Path) -> None:
    """Remove what Hydra makes before a command is refused, where there is nothing else; and the directory with it,
    unless the command was given there."""
    found = {path.name: path for path in run_dir.iterdir()} if run_dir.is_dir() else {}
    log = found.get("lmxexp.log")
    if not found or not found.keys() <= {".hydra", "lmxexp.log"} or (log is not None and log.stat().st_size):
        return
    if log is not None:
        log.unlink()
    shutil.rmtree(run_dir / ".hydra", ignore_errors=True)
    if run_dir.resolve() != Path.cwd():
        run_dir.rmdir()
