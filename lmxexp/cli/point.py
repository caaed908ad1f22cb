"""One point: what Hydra calls for a single run, and for each point of a sweep."""

from __future__ import annotations

import logging
import math
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from lmxexp.cli import errors
from lmxexp.cli.resume import Plan
from lmxexp.cli.validate import check
from lmxexp.compose import complete

log = logging.getLogger("lmxexp")


@dataclass
class Outcome:
    """How one point ended."""

    overrides: list[str]
    status: str
    score: float
    run_dir: Path
    message: str = ""
    error: BaseException | None = None
    """What it failed of, where its traceback was asked for."""
    exit_code: int = 1


@dataclass
class Points:
    """Runs points, and remembers how they ended.

    Args:
        argv: the command line as it was typed; it goes into the run's record.
        plan: for ``resume``.
        traceback: whether to show the tracebacks of errors, whatever the configuration says.
    """

    argv: list[str]
    plan: Plan | None = None
    traceback: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    multirun: bool = False

    def __call__(self, cfg: DictConfig) -> float:
        """Run one point. It never raises an ``Exception``: the other points of a sweep go on.

        Returns:
            The score that a sweeper minimises, infinite for a point that failed.
        """
        hydra: Any = HydraConfig.get()
        self.multirun = hydra.mode == RunMode.MULTIRUN
        sys.argv[:] = self.argv
        run_dir = Path(hydra.runtime.output_dir)
        try:
            outcome = self._run(cfg, hydra, run_dir)
        except Exception as error:
            outcome = self._failed(error, cfg, list(hydra.overrides.task), run_dir)
        self.outcomes.append(outcome)
        if outcome.status == "stopped":
            # By a signal that is meant for the whole sweep, not for one of its points.
            raise SystemExit(outcome.exit_code)
        return outcome.score

    def _run(self, cfg: DictConfig, hydra: Any, run_dir: Path) -> Outcome:
        complete(cfg, hydra.runtime.choices)
        typed = list(hydra.overrides.task)
        if self.plan is not None:
            cfg = self.plan.configuration(cfg)
            typed = [o.input_line or "" for o in self.plan.values]
        if self.multirun:
            with open_dict(cfg):
                cfg.sweep = Path(hydra.sweep.dir).name
        check(cfg, typed)

        from lmxexp.run import run  # MLX and all the rest: only where something is trained

        result = run(cfg, run_dir=run_dir)
        codes = {"ok": 0, "stopped": 128 + (result.signal or signal.SIGTERM)}
        return Outcome(typed, result.status, result.score, result.run_dir, exit_code=codes.get(result.status, 1))

    def _failed(self, error: Exception, cfg: DictConfig, overrides: list[str], run_dir: Path) -> Outcome:
        file = None if errors.is_config_error(error) else errors.write_traceback(error, run_dir)
        message = errors.describe(error, file)
        if self.multirun:
            log.error("%s failed: %s", " ".join(overrides), message)
        shown = error if self.traceback or (cfg.get("debug") or {}).get("traceback") else None
        return Outcome(overrides, "failed", math.inf, run_dir, message, shown)

    def finish(self) -> int:
        """Report what is left to report; the exit code of the process."""
        if not self.outcomes:
            return 0
        if not self.multirun:
            last = self.outcomes[-1]
            if last.message:
                errors.report(last.message, last.error)
            return last.exit_code
        shared = set.intersection(*(set(o.overrides) for o in self.outcomes)) if len(self.outcomes) > 1 else set()
        for i, outcome in enumerate(self.outcomes):
            overrides = " ".join(o for o in outcome.overrides if o not in shared)
            print(f"#{i} {outcome.status:<8} score={outcome.score:<8.4g} {overrides} -> {outcome.run_dir}")
        codes = [o.exit_code for o in self.outcomes]
        stopped = [code for code in codes if code > 1]
        return stopped[0] if stopped else max(codes)
