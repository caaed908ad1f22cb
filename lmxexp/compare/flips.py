"""Where the ranking of arms flips during training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from lmxexp.compare.curves import Band, band, lower_is_better, shown, together

if TYPE_CHECKING:
    from lmxexp.compare.arms import Arm
    from lmxexp.compare.comparison import Comparison

_ALL_PAIRS = 6
"""Up to so many arms every pair is looked at; of more, those with the baseline or the best."""


def flips(comparison: Comparison, at_most: int = 12) -> list[str]:
    """Where the ranking of two arms flips during training, in sentences.

    A lead counts where it is larger than the standard error of the difference (paired by seed where the arms share at
    least two) at two neighbouring points or more; the flip is where the means last cross in between.

    Args:
        comparison: its arms, its metric and which way that is better.
        at_most: sentences; a last one says how many more there are.
    """
    arms: Sequence[Arm] = [arm for arm in comparison.arms if arm.runs]
    what = shown(arms, comparison.metric)
    bands = {arm.label: band(arm, what.metric, "step", what.window) for arm in arms}
    bands = {label: b for label, b in bands.items() if len(b.x)}
    sign = 1 if lower_is_better(comparison, what) else -1
    found = []
    for one, other in _pairs(list(bands), comparison, bands, sign):
        sentence = _sentence(one, other, leads(bands[one], bands[other], sign))
        if sentence:
            found.append(sentence if bands[one].n > 1 or bands[other].n > 1 else f"{sentence} (one seed each)")
    rest = len(found) - at_most
    return found if rest <= 0 else [*found[:at_most], f"and {rest} more pairs of arms change places"]


def leads(one: Band, other: Band, sign: int = 1) -> list[tuple[bool, float]]:
    """Who leads in turn: whether it is the first, and from which x on. Fewer than two entries: no flip."""
    a, b, grid = together(one, other)
    if len(grid) < 2:
        return []
    mean = sign * (a.mean(0) - b.mean(0))
    certain = np.where(np.abs(mean) > _standard_error(a, b, one.seeds, other.seeds), np.sign(mean), 0.0)
    ahead = certain * (_beside(certain) if len(grid) > 3 else 1)
    turns: list[tuple[bool, float]] = []
    before = 0
    for i in np.flatnonzero(ahead):
        first_leads = bool(certain[i] < 0)
        if not turns:
            turns.append((first_leads, float(grid[0])))
        elif turns[-1][0] != first_leads:
            turns.append((first_leads, _crossing(grid[before : i + 1], mean[before : i + 1])))
        before = i
    return turns


def _pairs(labels: list[str], comparison: Comparison, bands: dict[str, Band], sign: int) -> list[tuple[str, str]]:
    if len(labels) <= _ALL_PAIRS:
        return list(combinations(labels, 2))
    best = min(labels, key=lambda label: sign * bands[label].mean[-1])
    special = dict.fromkeys([comparison.baseline.label, best])
    pairs = [(s, label) for s in special for label in labels if s in bands and label != s]
    return list({frozenset(pair): pair for pair in pairs}.values())


def _sentence(one: str, other: str, turns: list[tuple[bool, float]]) -> str | None:
    if len(turns) < 2:
        return None
    names = [one if first else other for first, _ in turns]
    ends = [round(end) for _, end in turns[1:]]
    if len(turns) > 4:
        return (
            f"{one} and {other} change places {len(turns) - 1} times, last at step {ends[-1]:,}: {names[-1]} leads then"
        )
    parts = [f"{names[0]} leads until step {ends[0]:,}"]
    parts += [f"{name} until step {end:,}" for name, end in zip(names[1:-1], ends[1:], strict=True)]
    return ", ".join([*parts, f"{names[-1]} from there on"])


def _standard_error(a: np.ndarray, b: np.ndarray, seeds_a: list, seeds_b: list) -> np.ndarray | float:
    shared = [seed for seed in seeds_a if seed in seeds_b]
    if len(shared) >= 2:
        paired = a[[seeds_a.index(s) for s in shared]] - b[[seeds_b.index(s) for s in shared]]
        return paired.std(0, ddof=1) / math.sqrt(len(shared))
    if min(len(a), len(b)) >= 2:
        return np.sqrt(a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b))
    return 0.0


def _beside(signs: np.ndarray) -> np.ndarray:
    """Whether a neighbour has the same sign."""
    same = signs[1:] == signs[:-1]
    return np.concatenate([same, [False]]) | np.concatenate([[False], same])


def _crossing(x: np.ndarray, difference: np.ndarray) -> float:
    """Where the difference last changes its sign to the one it has at the end."""
    opposite = np.flatnonzero(np.sign(difference) != np.sign(difference[-1]))
    i = opposite[-1]
    share = difference[i] / (difference[i] - difference[i + 1])
    return float(x[i] + share * (x[i + 1] - x[i]))
