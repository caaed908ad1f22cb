"""Sweeps of ours: plan all points, run those that have no result yet, on whichever launcher."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmxexp.cli.composer import Composer
from lmxexp.cli.errors import refuse
from lmxexp.sweep import ledger, points, session
from lmxexp.sweep.composing import FrozenLoader
from lmxexp.sweep.ledger import Entry, Ledger, Outcome, PointProcessError, locked, read_outcome, unprune, write_outcome
from lmxexp.sweep.planner import Planned, Planner, sweep_directory


class GridSweeper(Sweeper):
    """Every combination of the values.

    Args:
        params: overrides beside those typed, which count where both name a key: ``{attention: "mha,gqa"}``.
        max_batch_size: points that a launcher is given at a time; None: all.
    """

    mode = "grid"
    launcher: Launcher
    loader: FrozenLoader
    config: DictConfig

    def __init__(self, params: dict[str, Any] | None = None, max_batch_size: int | None = None):
        if max_batch_size is not None and max_batch_size < 1:
            refuse(f"hydra.sweeper.max_batch_size={max_batch_size} must be at least 1, or null")
        self.params, self.max_batch_size = params or {}, max_batch_size

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.loader = FrozenLoader(hydra_context.config_loader)
        context = HydraContext(config_loader=self.loader, callbacks=hydra_context.callbacks)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )
        self._composer = Composer(partial(hydra_context.config_loader.load_sweep_config, config))

    def sweep(self, arguments: list[str]) -> None:
        directory = sweep_directory(self.config)
        typed = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        lines = self.lines(OverridesParser.create(config_loader=self.loader).parse_overrides(typed))
        new = [path for path in (directory, *directory.parents) if not path.exists()]
        with locked(directory / ".lock", wait=1.0, who=f"the sweep {directory}"):
            try:
                book = Ledger(directory)
                planner = Planner(self._composer, book, self.mode)
                plan = planner.plan(lines)
                (directory / ledger.STOP_FILE).unlink(missing_ok=True)
                (directory / "multirun.yaml").write_text(OmegaConf.to_yaml(self.config), encoding="utf-8")
                asked = {"asked": [point.entry.num for point in plan], "match": planner.match, "tune": planner.tune}
                book.write({**session.facts(), "sweeper": self.mode, **asked})
                for point in plan if self.mode != "halving" else ():  # here every point comes to its end
                    unprune(directory / point.entry.dir)
                session.expect(plan)
                self.run(plan, directory)
            except Exception:
                _remove_if_empty(new)  # nothing was begun: a mistake leaves no directory behind
                raise

    def lines(self, overrides: Sequence[Override]) -> list[points.Line]:
        """The points of the sweep as lines of overrides."""
        return points.grid(overrides)

    def run(self, plan: list[Planned], directory: Path) -> None:
        """Run the points that have no result yet."""
        self.launch(plan, directory)

    def launch(self, plan: list[Planned], directory: Path, until: Mapping[str, int] | None = None) -> None:
        """Bring every point to its end, or to its step in ``until``, which go by identities.

        What a point's process could not tell is written here.
        """
        until = until or {}
        todo = [point for point in plan if not reached(point, directory, until.get(point.entry.identity))]
        size = self.max_batch_size or max(len(todo), 1)
        for start in range(0, len(todo), size):
            self._launch(todo[start : start + size], directory, until)

    def _launch(self, todo: list[Planned], directory: Path, until: Mapping[str, int]) -> None:
        """Launch until every point has begun: a launcher may give up because the process of one of them died."""
        while todo and not (directory / ledger.STOP_FILE).exists():
            attempts = {point.entry.dir: _attempt(directory / point.entry.dir) for point in todo}
            lines = [self._freeze(point, until.get(point.entry.identity)) for point in todo]
            error = None
            try:
                returned: Sequence[Any] = self.launcher.launch(lines, initial_job_idx=0)
            except Exception as e:  # a worker of joblib's was killed, say
                returned, error = [None] * len(todo), e
            for point in todo:  # submitit and ray give up at the first that was killed, while others are at work
                _wait_for(directory / point.entry.dir)
            for point, result in zip(todo, returned, strict=True):
                _conclude(point.entry, directory / point.entry.dir, attempts[point.entry.dir], result, error)
            if error is None:
                return
            left = [point for point in todo if _attempt(directory / point.entry.dir) == attempts[point.entry.dir]]
            if len(left) == len(todo):
                raise error
            todo = left

    def _freeze(self, point: Planned, until: int | None) -> list[str]:
        line = [*point.line, *([f"++sweep.until={until}"] if until is not None else [])]
        self.loader.freeze(line, point.whole(until), subdir=point.entry.dir)
        return line


class RandomSweeper(GridSweeper):
    """Combinations drawn at random, the same ones for the same seed.

    Args:
        n_trials: points to draw.
        seed: of the draws.
        params: as of `GridSweeper`, and intervals: ``tag(log, interval(1e-4, 1e-2))``.
    """

    mode = "random"

    def __init__(
        self,
        n_trials: int = 20,
        seed: int = 0,
        params: dict[str, Any] | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__(params, max_batch_size)
        self.n_trials, self.seed = n_trials, seed

    def lines(self, overrides: Sequence[Override]) -> list[points.Line]:
        return points.random(overrides, self.n_trials, self.seed)


def reached(point: Planned, directory: Path, until: int | None) -> bool:
    """Whether a point has its result, or has paused at ``until`` or beyond."""
    outcome = read_outcome(directory / point.entry.dir)
    if outcome is None or outcome.identity != point.entry.identity:
        return False
    return outcome.final or (until is not None and outcome.status == "paused" and (outcome.step or 0) >= until)


def _attempt(run_dir: Path) -> int:
    """How often the point has begun."""
    outcome = read_outcome(run_dir)
    return outcome.attempt if outcome else 0


def _wait_for(run_dir: Path) -> None:
    """Until no process is at work on a point."""
    outcome = read_outcome(run_dir)
    if outcome is not None and outcome.status == "running":
        with locked(run_dir / ".lock", wait=math.inf, who=f"the point {run_dir}"):
            pass


def _conclude(entry: Entry, run_dir: Path, attempt: int, returned: Any, error: Exception | None) -> None:
    """Write the end of a point that could not do so itself: it was killed while it ran, or failed before it did."""
    outcome = read_outcome(run_dir)
    failed = isinstance(returned, JobReturn) and returned.status == JobStatus.FAILED
    cause = returned._return_value if failed else error
    if outcome is not None and outcome.attempt > attempt:
        if outcome.status == "running":
            text = _in_words(cause) if cause else "its process ended without a word"
            write_outcome(run_dir, replace(outcome, status="killed", error=text, exit_code=1))
    elif failed:
        text = _in_words(cause)
        end = Outcome(entry.identity, "failed", error=text, overrides=entry.overrides, attempt=attempt + 1, exit_code=1)
        write_outcome(run_dir, end)


def _in_words(error: Any) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PointProcessError) else f"{type(error).__name__}: {text}"


def _remove_if_empty(new: Sequence[Path]) -> None:
    """A directory that holds nothing but its lock, and then those above it."""
    for path in new:
        if not path.is_dir() or {p.name for p in path.iterdir()} - {".lock"}:
            return
        (path / ".lock").unlink(missing_ok=True)
        path.rmdir()
