"""The difference of two arms: over the pairs of runs that saw the same, where there are any."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmxexp.compare.axes import Axis
from lmxexp.compare.read import Run
from lmxexp.compare.statistics import Difference, paired, welch

Values = Mapping[Run, float]
ONE_SEED = "one seed"
"""Why there is no interval."""


@dataclass(frozen=True)
class Compared:
    """What came of comparing two arms."""

    difference: Difference | None
    """None where there are too few values for an interval."""
    mean: float
    """Of the difference: over the pairs where they decide, otherwise of the means."""
    why_not: str = ""
    """Why there is no difference that can be judged."""
    left_out: tuple[Run, ...] = ()
    """Runs of either arm without a partner."""
    unvarying: bool = False
    """Neither arm varies at all over its seeds."""


def compare_arms(arm: Values, baseline: Values, axes: Sequence[Axis] = ()) -> Compared:
    """Compare the values of two arms.

    Runs are paired by seed, data seed and data fingerprint: they started from the same random numbers and saw the same
    batches, so what a seed does to both cancels. With pairs of two seeds or more only those count, by a paired t test;
    with fewer all values count, by Welch's.

    Args:
        axes: what differs inside the arms. It makes pairs as well; then their differences are averaged over it, so
            that each seed counts once: runs of one seed share their initial weights and batches and are no independent
            observations, whatever else differs.
    """
    of_arm, of_baseline = by_seed(arm, axes), by_seed(baseline, axes)
    mean = _mean(of_arm) - _mean(of_baseline)
    unvarying = _is_constant(of_arm) and _is_constant(of_baseline)
    pairs, left_out = _pairs(arm, baseline, axes)
    if len(pairs) >= 2:
        difference = paired([a for a, _ in pairs], [b for _, b in pairs])
        return Compared(difference, difference.mean, "", left_out, unvarying)
    if len(of_arm) < 2 or len(of_baseline) < 2:
        return Compared(None, mean, ONE_SEED)
    if any(_is_unbalanced(axis, arm, baseline) for axis in axes):
        names = ", ".join(axis.name for axis in axes)
        return Compared(None, mean, f"{names} differs inside the arms, and no two seeds have runs that are equal in it")
    difference = welch(of_arm, of_baseline)
    return Compared(difference, difference.mean, "", (), unvarying)


def by_seed(values: Values, axes: Sequence[Axis] = ()) -> list[float]:
    """The independent observations among values: all, or with ``axes`` one for each seed, its mean over them."""
    if not axes:
        return list(values.values())
    of_seed: dict[Hashable, list[float]] = {}
    for run, value in values.items():
        of_seed.setdefault(id(run) if run.seed is None else (run.seed, run.data_seed), []).append(value)
    return [_mean(of_one) for of_one in of_seed.values()]


def _pairs(arm: Values, baseline: Values, axes: Sequence[Axis]) -> tuple[list[tuple[float, float]], tuple[Run, ...]]:
    """The values of each seed that belong together, and the runs that have no partner."""
    of_arm, of_baseline = _by_key(arm, axes), _by_key(baseline, axes)
    shared = [key for key in of_arm if key in of_baseline]
    inside = {run for key in shared for run in (*of_arm[key], *of_baseline[key])}
    of_seed: dict[Any, list[tuple[Any, ...]]] = {}
    for key in shared:
        of_seed.setdefault(key[:2] if axes else key, []).append(key)
    pairs = [(_over(keys, of_arm, arm), _over(keys, of_baseline, baseline)) for keys in of_seed.values()]
    return pairs, tuple(run for run in (*arm, *baseline) if run not in inside)


def _over(keys: Sequence[tuple[Any, ...]], runs: Mapping[tuple[Any, ...], Sequence[Run]], values: Values) -> float:
    return _mean(_mean(values[run] for run in runs[key]) for key in keys)


def _by_key(values: Values, axes: Sequence[Axis]) -> dict[tuple[Any, ...], list[Run]]:
    """Runs by what those share that belong together: both seeds, the data, and what differs inside the arms."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in values:
        if run.seed is not None:
            key = (run.seed, run.data_seed, run.fingerprint, *(axis.values.get(run) for axis in axes))
            found.setdefault(key, []).append(run)
    return found


def _is_unbalanced(axis: Axis, arm: Values, baseline: Values) -> bool:
    return sorted(map(repr, (axis.values.get(r) for r in arm))) != sorted(
        map(repr, (axis.values.get(r) for r in baseline))
    )


def _is_constant(values: Sequence[float]) -> bool:
    return len(values) > 1 and len(set(values)) == 1


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
