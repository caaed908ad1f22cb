"""Whole curves of runs and arms: a metric against steps, tokens, FLOPs or seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmxexp.compare.measure import higher_is_better

if TYPE_CHECKING:
    from lmxexp.compare.arms import Arm
    from lmxexp.compare.comparison import Comparison
    from lmxexp.compare.read import Run

Axis = Literal["step", "tokens", "flops", "seconds"]
AXES: dict[Axis, str] = {
    "step": "steps",
    "tokens": "tokens",
    "flops": "training FLOPs",
    "seconds": "training seconds (steps alone, not wall clock)",
}
"""With what is written beside the axis."""
MAX_POINTS = 400
"""Of a run that are read, drawn and written: more than a screen shows."""
_REMEMBERED = 8192
"""Curves: the pictures and the page draw the same ones."""
_CLOCK_POINTS = 64
"""Readings of the speed that a run's clock is summed up from."""
MIN_EVALUATIONS = 4
"""With fewer evaluations than these a line through them says nothing of when a ranking flips."""


@dataclass(frozen=True, eq=False)
class Band:
    """An arm's curves on one grid, where all of its seeds have data."""

    x: np.ndarray
    values: np.ndarray
    """(seeds, points)."""
    seeds: list[Any]
    """Of the rows, by which two arms are paired: seed, data seed and data."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> np.ndarray:
        return self.values.mean(0)

    @property
    def low(self) -> np.ndarray:
        return self.values.min(0)

    @property
    def high(self) -> np.ndarray:
        return self.values.max(0)


@dataclass(frozen=True)
class Shown:
    """What the curves of a comparison show."""

    metric: str
    window: int = 1
    """Logged lines that are averaged, 1: as it was logged."""
    instead_of: str = ""
    """The metric of the comparison, where it was logged too seldom for curves."""

    @property
    def title(self) -> str:
        averaged = f", mean of {self.window} logged values" if self.window > 1 else ""
        return f"{self.metric}{averaged}{f' (too few {self.instead_of} for curves)' if self.instead_of else ''}"


def shown(arms: Sequence[Arm], metric: str = "eval/loss") -> Shown:
    """The metric if every run has logged it at least four times, otherwise the training loss, smoothed.

    Args:
        metric: of the comparison; of ``best/eval/loss`` the curve is ``eval/loss``.
    """
    name = metric.removeprefix("best/")
    runs = [run for arm in arms for run in arm.runs]
    if all(len(curve(run, name)[0]) >= MIN_EVALUATIONS for run in runs):
        return Shown(name)
    fewest = min((len(curve(run, "train/loss")[0]) for run in runs), default=0)
    return Shown("train/loss", fewest // 20 // 2 * 2 + 1, "" if name == "train/loss" else name)


@lru_cache(_REMEMBERED)
def curve(run: Run, metric: str, x: Axis = "step") -> tuple[np.ndarray, np.ndarray]:
    """A run's metric, thinned to `MAX_POINTS`, and where it was logged.

    Args:
        x: ``flops`` counts training, forward and backward; ``seconds`` is the time of the training steps, summed up
            from ``perf/step_ms`` (or tokens and ``perf/tokens_per_s``) of logged lines: no compilation, evaluation or
            checkpoint. Steps before the first reading count at its speed.

    Returns:
        Both empty where the metric or the axis was not logged. Values that are not finite are left out.
    """
    lines = run.lines(metric, at_most=MAX_POINTS)
    y = np.array([line[metric] for line in lines], dtype=float)
    at = _positions(run, lines, x)
    if at is None:
        return np.empty(0), np.empty(0)
    kept = np.isfinite(y) & np.isfinite(at)
    at, y = at[kept], y[kept]
    at.flags.writeable = y.flags.writeable = False  # the next caller gets the same
    return at, y


def band(arm: Arm, metric: str, x: Axis = "step", window: int = 1) -> Band:
    """The seeds' curves of an arm, interpolated in ``x``, from where the last of them starts to where the first ends.

    Args:
        window: of a moving average along each curve, odd; shorter at its ends.

    Returns:
        A band of no points where the seeds share none. Seeds that did not log the metric are no part of it. Runs of one
        seed, which differ in what the arm does not name, are one curve, their mean.
    """
    found = [((run.seed, run.data_seed, run.fingerprint), *curve(run, metric, x)) for run in arm.runs]
    curves = [(seed, at, smooth(y, window)) for seed, at, y in found if len(at)]
    empty = Band(np.empty(0), np.empty((0, 0)), [])
    if not curves:
        return empty
    first, last = max(at[0] for _, at, _ in curves), min(at[-1] for _, at, _ in curves)
    coarsest = min((at for _, at, _ in curves), key=len)
    grid = coarsest[(coarsest >= first) & (coarsest <= last)]
    if first > last:
        return empty
    grid = np.unique(np.concatenate([[first], grid, [last]]))
    of_seed: dict[Any, list[np.ndarray]] = {}
    for seed, at, y in curves:
        of_seed.setdefault(seed, []).append(np.interp(grid, at, y))
    return Band(grid, np.stack([np.mean(rows, 0) for rows in of_seed.values()]), list(of_seed))


def difference(one: Band, other: Band) -> Band:
    """One band minus another where both have data; by shared seeds where there are two or more, otherwise of the means
    (a single row)."""
    a, b, grid = together(one, other)
    shared = [seed for seed in one.seeds if seed in other.seeds]
    if len(shared) >= 2:
        rows = [a[one.seeds.index(seed)] - b[other.seeds.index(seed)] for seed in shared]
        return Band(grid, np.stack(rows), shared)
    return Band(grid, (a.mean(0) - b.mean(0))[None] if len(grid) else np.empty((1, 0)), [None])


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """The mean of ``window`` values around each; at the ends, of those that there are on both sides alike."""
    if window <= 1 or len(y) < 3:
        return y
    position = np.arange(len(y))
    half = np.minimum(window // 2, np.minimum(position, len(y) - 1 - position))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    return (sums[position + half + 1] - sums[position - half]) / (2 * half + 1)


def lower_is_better(comparison: Comparison, what: Shown) -> bool:
    """Of the curves' metric, which the user may have given a direction."""
    if what.metric == comparison.metric.removeprefix("best/"):
        return not comparison.higher_is_better
    return not higher_is_better(what.metric)


def together(one: Band, other: Band) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both bands' values on the first one's grid, as far as both reach, and the grid."""
    if len(one.x) == 0 or len(other.x) == 0:
        return np.empty((1, 0)), np.empty((1, 0)), np.empty(0)
    grid = one.x[(one.x >= other.x[0]) & (one.x <= other.x[-1])]
    a, b = (np.stack([np.interp(grid, band.x, row) for row in band.values]) for band in (one, other))
    return a, b, grid


def _positions(run: Run, lines: list[dict[str, Any]], x: Axis) -> np.ndarray | None:
    if x == "seconds":
        steps, seconds = _clock(run)
        if len(steps) < 2:
            return None
        return np.interp([line["step"] for line in lines], steps, seconds, right=np.nan)
    if x == "flops":
        per_token = run.record.get("flops_per_token")
        if not per_token:
            return None
        return float(per_token) * np.array([line.get("tokens", np.nan) for line in lines], dtype=float)
    return np.array([line.get(x, np.nan) for line in lines], dtype=float)


def _clock(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Steps of logged lines, from 0, and the seconds of training up to them."""
    name = "perf/step_ms"
    lines = run.lines(name, at_most=_CLOCK_POINTS)
    if not lines:
        name = "perf/tokens_per_s"
        lines = run.lines(name, at_most=_CLOCK_POINTS)
    lines = [line for line in lines if math.isfinite(line[name]) and line[name] > 0]
    steps = np.array([0, *(line["step"] for line in lines)], dtype=float)
    read = np.array([line[name] for line in lines], dtype=float)
    if name == "perf/step_ms":
        spent = np.diff(steps) * read / 1e3
    else:
        spent = np.diff(np.array([0, *(line["tokens"] for line in lines)], dtype=float)) / read
    return steps, np.concatenate([[0.0], np.cumsum(spent)])


def difference_bands(comparison: Comparison, what: Shown) -> dict[str, Band]:
    """Each arm minus the baseline against steps; nothing without a baseline or a second arm that was logged."""
    arms = [arm for arm in comparison.arms if arm.runs]
    if len(arms) < 2 or arms[0] is not comparison.baseline:
        return {}
    base = band(arms[0], what.metric, "step", what.window)
    bands = {arm.label: difference(band(arm, what.metric, "step", what.window), base) for arm in arms[1:]}
    return {label: b for label, b in bands.items() if len(b.x) > 1}
