"""Successive halving: all arms train a little, the better ones train on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from lmxexp.cli.errors import refuse
from lmxexp.sweep import points
from lmxexp.sweep.ledger import Outcome, read_outcome, unprune, write_outcome
from lmxexp.sweep.planner import Planned
from lmxexp.sweep.sweeper import GridSweeper


class HalvingSweeper(GridSweeper):
    """Stops poor arms early: at each rung the best of them, one in ``factor``, go on to ``factor`` times as many steps.

    An arm is what the overrides beside the seeds make; the seeds of one arm stay and stop together, and count by their
    mean ``eval/loss`` at the rung. All arms wait for each other at a rung, so the result does not depend on which is
    quicker, and a sweep that was interrupted goes on to the same end. A point that goes on is the same run, bit for
    bit, as one that never paused: its schedule is laid out for all of ``train.steps`` from the beginning. Arms whose
    ``train.steps`` differ, to meet a budget say, pause at the same fraction of them.

    An arm without a finite score at a rung (diverged, failed, killed) comes last, and no such arm goes on. One that
    an earlier command, of another sweeper, has trained beyond a rung takes nobody's place there and goes on.

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
        seeds = [o for o in overrides if o.key_or_group in SEEDS]
        others = [o for o in overrides if o.key_or_group not in SEEDS]
        drawn = points.random(others, self.n_trials, self.seed)
        return [[*arm, *own] for arm in drawn for own in points.grid(seeds)]

    def run(self, plan: list[Planned], directory: Path) -> None:
        arms = group_by_arm(plan)
        for rung in rung_steps([point.steps for point in plan], self.rungs, self.factor):
            until = {point.entry.identity: rung[point.steps] for point in plan}
            self.launch([p for arm in arms for p in arm], directory, until)
            arms = self._stop_poor(arms, directory, until)
        self.launch([p for arm in arms for p in arm], directory)

    def _stop_poor(self, arms: list[list[Planned]], directory: Path, until: Mapping[str, int]) -> list[list[Planned]]:
        """The arms that go on; the others are marked."""
        scores = [_score(arm, directory, until) for arm in arms]
        rank = sorted((i for i, score in enumerate(scores) if score is not None), key=lambda i: scores[i] or 0.0)
        keep = math.ceil(len(rank) / self.factor)
        going_on = {i for i in rank[:keep] if math.isfinite(scores[i] or 0.0)}
        for place, i in enumerate(rank):  # of equals the first
            for point in arms[i]:
                run_dir, step = directory / point.entry.dir, until[point.entry.identity]
                outcome = read_outcome(run_dir)
                if outcome is None or outcome.step != step or outcome.status not in ("paused", "pruned"):
                    continue
                if i in going_on:
                    unprune(run_dir)  # which an earlier command did, among other arms
                else:
                    reason = f"stopped at step {step}: {place + 1} of {len(rank)} arms, {keep} go on"
                    if (marked := replace(outcome, status="pruned", error=reason)) != outcome:
                        write_outcome(run_dir, marked)
        return [arm for i, arm in enumerate(arms) if i in going_on or scores[i] is None]


SEEDS = ("seed", "data.seed")


def rung_steps(steps: Iterable[int], rungs: int, factor: float) -> list[dict[int, int]]:
    """Of each rung, in their order, the steps to pause at by all the steps of a point.

    They are ``steps / factor``, ``steps / factor ** 2``, …, each at least 1. Rungs that coincide are one.
    """
    found = [{n: max(1, round(n / factor**k)) for n in sorted(set(steps))} for k in range(rungs, 0, -1)]
    different = [rung for i, rung in enumerate(found) if rung not in found[:i]]
    return [rung for rung in different if any(step < n for n, step in rung.items())]


def group_by_arm(plan: Sequence[Planned]) -> list[list[Planned]]:
    """Points that differ in their seeds alone, together."""
    arms: dict[tuple[str, ...], list[Planned]] = {}
    for point in plan:
        arm = tuple(text for text in point.line if text.partition("=")[0].lstrip("+") not in SEEDS)
        arms.setdefault(arm, []).append(point)
    return list(arms.values())


def _score(arm: Sequence[Planned], directory: Path, until: Mapping[str, int]) -> float | None:
    """The mean at a rung over the seeds: infinite where one of them did not get there with a finite loss, None where
    one was trained beyond it without a pause."""
    scores: list[float] = []
    beyond = False
    for point in arm:
        step, outcome = until[point.entry.identity], read_outcome(directory / point.entry.dir)
        if outcome is not None and str(step) in outcome.rungs:
            score = outcome.rungs[str(step)]
            scores.append(score if math.isfinite(score) else math.inf)
        elif outcome is not None and (outcome.status == "ok" or _paused_beyond(outcome, step)):
            beyond = True
        else:
            scores.append(math.inf)
    if beyond and all(map(math.isfinite, scores)):
        return None
    return sum(scores) / len(scores)


def _paused_beyond(outcome: Outcome, step: int) -> bool:
    return outcome.status in ("paused", "pruned") and (outcome.step or 0) > step
