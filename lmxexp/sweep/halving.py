"""Successive halving: all arms train a little, the better ones train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from lmxexp.cli.errors import refuse
from lmxexp.sweep import points
from lmxexp.sweep.ledger import read_outcome, write_outcome
from lmxexp.sweep.planner import Planned
from lmxexp.sweep.sweeper import GridSweeper


class HalvingSweeper(GridSweeper):
    """Stops poor arms early: at each rung the best of them, one in ``factor``, go on to ``factor`` times as many steps.

    An arm is what the overrides beside the seeds make; the seeds of one arm stay and stop together, and count by their
    mean ``eval/loss`` at the rung. All arms wait for each other at a rung, so the result does not depend on which is
    quicker, and a sweep that was interrupted goes on to the same end. A point that goes on is the same run, bit for
    bit, as one that never paused: its schedule is laid out for all of ``train.steps`` from the beginning.

    Args:
        rungs: evaluations that arms are stopped at, before the end.
        factor: one arm in so many goes on.
        n_trials: arms drawn at random; None: every combination.
        seed: of the draws.
        params: as of `GridSweeper`, or of `RandomSweeper` with ``n_trials``.
        max_batch_size: as of `GridSweeper`.

    Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization"; Li et
    al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA), which is this without the waiting.
    """

    mode = "halving"

    def __init__(
        self,
        rungs: int = 2,
        factor: float = 3.0,
        n_trials: int | None = None,
        seed: int = 0,
        params: dict[str, Any] | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__(params, max_batch_size)
        if rungs < 1:
            refuse(f"hydra.sweeper.rungs={rungs} must be at least 1")
        if factor <= 1:
            refuse(f"hydra.sweeper.factor={factor} must be above 1: one arm in so many goes on")
        self.rungs, self.factor, self.n_trials, self.seed = rungs, factor, n_trials, seed

    def lines(self, overrides: Sequence[Override]) -> list[points.Line]:
        if self.n_trials is None:
            return points.grid(overrides)
        seeds = [o for o in overrides if o.get_key_element() in SEEDS and o.is_sweep_override()]
        others = [o for o in overrides if o not in seeds]
        drawn = points.random(others, self.n_trials, self.seed)
        return [[*arm, *own] for arm in drawn for own in points.grid(seeds)]

    def run(self, plan: list[Planned], directory: Path) -> None:
        arms = group_by_arm(plan)
        for until in rung_steps(max(point.steps for point in plan), self.rungs, self.factor):
            self.launch([p for arm in arms for p in arm], directory, until)
            arms = self._stop_poor(arms, directory, until)
        self.launch([p for arm in arms for p in arm], directory)

    def _stop_poor(self, arms: list[list[Planned]], directory: Path, until: int) -> list[list[Planned]]:
        """The arms that go on; the others are marked."""
        scores = [_score(arm, directory, until) for arm in arms]
        keep = math.ceil(len(arms) / self.factor)
        order = sorted(range(len(arms)), key=lambda i: scores[i])  # of equals the first
        going_on = sorted(i for i in order[:keep] if math.isfinite(scores[i]))
        for i, arm in enumerate(arms):
            for run_dir in (directory / point.entry.dir for point in arm):
                outcome = read_outcome(run_dir)
                if outcome is None or outcome.step != until:
                    continue
                if i in going_on and outcome.status == "pruned":  # by an earlier command, among other arms
                    write_outcome(run_dir, replace(outcome, status="paused", error=None))
                elif i not in going_on and outcome.status == "paused":
                    reason = f"stopped at step {until}: {order.index(i) + 1} of {len(arms)} arms, {keep} go on"
                    write_outcome(run_dir, replace(outcome, status="pruned", error=reason))
        return [arms[i] for i in going_on]


SEEDS = ("seed", "data.seed")


def rung_steps(steps: int, rungs: int, factor: float) -> list[int]:
    """The steps to pause at: ``steps / factor``, ``steps / factor ** 2``, … in rising order, each at least 1."""
    found = {max(1, round(steps / factor**k)) for k in range(1, rungs + 1)}
    return sorted(step for step in found if step < steps)


def group_by_arm(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Points that differ in their seeds alone, together."""
    arms: dict[tuple[str, ...], list[Planned]] = {}
    for point in plan:
        arm = tuple(text for text in point.line if text.partition("=")[0].lstrip("+") not in SEEDS)
        arms.setdefault(arm, []).append(point)
    return list(arms.values())


def _score(arm: Sequence[Planned], directory: Path, until: int) -> float:
    """The mean at a rung over the seeds; infinite where one of them did not get there."""
    outcomes = [read_outcome(directory / point.entry.dir) for point in arm]
    return sum(float(o.rungs.get(str(until), math.inf)) if o is not None else math.inf for o in outcomes) / len(arm)
