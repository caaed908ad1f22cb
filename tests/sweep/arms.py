"""Arms that train in no time: sweeps of points with made-up losses."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from lmxexp.sweep.composing import FrozenLoader
from lmxexp.sweep.halving import HalvingSweeper
from lmxexp.sweep.ledger import Entry, Outcome, read_outcome, write_outcome
from lmxexp.sweep.planner import Planned
from lmxexp.sweep.sweeper import GridSweeper

Loss = Callable[[int, int, int], float]
"""``(arm, seed, step)``; NaN or infinite: it diverges before that step."""


def planned(arms: int, seeds: int = 1, steps: Sequence[int] = (27,)) -> list[Planned]:
    """Points; the training steps of the arms go round."""
    points = []
    for arm in range(arms):
        for seed in range(seeds):
            num, line = len(points), [f"arm={arm}", f"seed={seed}"]
            cfg = OmegaConf.create({"arm": arm, "seed": seed, "train": {"steps": steps[arm % len(steps)]}, "sweep": {}})
            hydra = OmegaConf.create({"sweep": {"subdir": ""}, "output_subdir": ".hydra"})
            points.append(Planned(line, cfg, hydra, Entry(num, f"{num}_{line[0]},{line[1]}", f"id{num}", line)))
    return points


@dataclass
class Training:
    """A launcher whose points come to ``loss`` in no time.

    Args:
        loader: what the sweeper has frozen.
        directory: of the sweep.
        loss: what they come to.
        failing: points (arm, seed) that raise whenever they run.
        stop_after: points, before the whole sweep is killed in the middle of the next; None: never.
    """

    loader: FrozenLoader
    directory: Path
    loss: Loss
    failing: frozenset[tuple[int, int]] = frozenset()
    stop_after: int | None = None
    launched: list[list[tuple[int, int, int | None]]] = field(default_factory=list)
    """Of each launch what ran: arm, seed and until when."""
    trained: int = 0
    """Steps in all."""

    def launch(self, lines: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        self.launched.append([])
        return [self._run(self.loader.load_sweep_config(OmegaConf.create(), list(line))) for line in lines]

    def _run(self, cfg: Any) -> JobReturn:
        arm, seed, until, steps = cfg.arm, cfg.seed, cfg.sweep.until, cfg.train.steps
        self.launched[-1].append((arm, seed, until))
        run_dir = self.directory / cfg.hydra.sweep.subdir
        before = read_outcome(run_dir)
        assert before is None or not before.final, "what has its result is not launched"
        outcome = replace(before, attempt=before.attempt + 1) if before else Outcome(f"id{cfg.hydra.sweep.subdir}", "")
        outcome = replace(outcome, identity=f"id{run_dir.name.partition('_')[0]}", score=math.inf, error=None)
        write_outcome(run_dir, replace(outcome, status="running"))
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        start, end = (before.step or 0) if before else 0, min(until or steps, steps)
        self.trained += max(end - start, 0)
        step, loss = max(start, end), self.loss(arm, seed, max(start, end))
        if (arm, seed) in self.failing:
            outcome = replace(outcome, status="failed", error="no luck", exit_code=1)
        elif math.isinf(loss):
            outcome = replace(outcome, status="diverged", error="it diverged", exit_code=1, step=step)
        elif step < steps:
            rungs = {**outcome.rungs, str(step): loss}
            outcome = replace(outcome, status="paused", score=loss, step=step, rungs=rungs)
        else:
            outcome = replace(outcome, status="ok", score=loss, step=step)
        write_outcome(run_dir, outcome)
        return JobReturn(overrides=[], status=JobStatus.COMPLETED, _return_value=outcome.score)


def halving(directory: Path, loss: Loss, **settings: Any) -> tuple[HalvingSweeper, Training]:
    training = {key: settings.pop(key) for key in ("failing", "stop_after") if key in settings}
    return _equipped(HalvingSweeper(**settings), directory, loss, **training)


def grid(directory: Path, loss: Loss) -> tuple[GridSweeper, Training]:
    return _equipped(GridSweeper(), directory, loss)


def _equipped(sweeper: Any, directory: Path, loss: Loss, **training: Any) -> tuple[Any, Training]:
    sweeper.loader = FrozenLoader(None)  # pyright: ignore[reportArgumentType]
    sweeper.launcher = Training(sweeper.loader, directory, loss, **training)
    return sweeper, sweeper.launcher


def ends(points: Sequence[Planned], directory: Path) -> list[tuple[str, int | None, float]]:
    """Of each point its status, steps and score."""
    outcomes = [read_outcome(directory / p.entry.dir) for p in points]
    return [(o.status, o.step, o.score) if o else ("waiting", None, math.inf) for o in outcomes]
