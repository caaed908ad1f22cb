"""The Pareto fronts of a comparison: the metric against speed and against memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmxexp.compare import figures
from lmxexp.compare.looks import Look, naming, ordered
from lmxexp.compare.pareto import front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lmxexp.compare.comparison import Comparison
    from lmxexp.compare.rows import Row


@dataclass(frozen=True)
class Cost:
    """What an arm costs, beside how good it is."""

    key: str
    """In ``summary.json``."""
    label: str
    more_is_better: bool


COSTS = (Cost("perf/tokens_per_s", "tokens/s in training", True), Cost("mem/peak_gb", "peak memory, GB", False))


@dataclass(frozen=True, eq=False)
class Cloud:
    """The arms against one cost."""

    cost: Cost
    labels: list[str]
    x: np.ndarray
    """(arms, 3): mean, least and most of the cost over seeds."""
    y: np.ndarray
    """(arms, 3) of the metric."""
    front: list[int]
    """Indices of the arms that none beats in both, by ascending cost."""


def clouds(comparison: Comparison) -> list[Cloud]:
    """One for each cost that at least two arms have."""
    return [c for cost in COSTS if cost.key != comparison.metric and len((c := cloud(comparison, cost)).labels) > 1]


def cloud(comparison: Comparison, cost: Cost) -> Cloud:
    """The arms that have the cost, with their front."""
    found = [(row.arm.label, _point(row, cost)) for row in comparison.rows]
    points = [(label, *point) for label, point in found if point is not None]
    x = np.array([p[1] for p in points]).reshape(-1, 3)
    y = np.array([p[2] for p in points]).reshape(-1, 3)
    best = front(np.stack([x[:, 0], y[:, 0]], 1), (cost.more_is_better, comparison.higher_is_better))
    return Cloud(cost, [p[0] for p in points], x, y, best)


def figure(comparison: Comparison, looks: dict[str, Look]) -> Figure | None:
    """A panel for each cost; None if no two arms have one."""
    found = clouds(comparison)
    if not found:
        return None
    looks = naming(looks, [c.labels[i] for c in found for i in c.front])
    fig, axes = figures.figure(3.9, 1, len(found), sharey=True)
    for ax, c in zip(axes, found, strict=True):
        _panel(ax, c, looks, comparison)
    axes[0].set_ylabel(figures.plain(comparison.metric))
    title = "the line joins arms that none beats in both; the others are faded\nbars: least to most over seeds"
    fig.suptitle(figures.plain(f"{comparison.metric} against cost: {title}"), fontsize=11)
    shown = {label for c in found for label in c.labels}
    figures.legend(fig, [row.arm.label for row in comparison.rows if row.arm.label in shown], looks, markers=True)
    return fig


def _panel(ax: Axes, c: Cloud, looks: dict[str, Look], comparison: Comparison) -> None:
    order = {label: i for i, label in enumerate(ordered(c.labels, looks))}
    each = sorted(range(len(c.labels)), key=lambda i: (i in c.front, order[c.labels[i]]))
    grey = [i for i in each if not looks[c.labels[i]].named]
    for arms in [grey, *([i] for i in each if i not in grey)] if grey else [[i] for i in each]:
        look, on_front = looks[c.labels[arms[0]]], arms[0] in c.front
        bars = [np.abs(v[arms, 1:] - v[arms, :1]).T for v in (c.x, c.y)]
        ax.errorbar(
            c.x[arms, 0], c.y[arms, 0], xerr=bars[0], yerr=bars[1], fmt=look.marker, color=look.colour,
            alpha=1.0 if on_front else 0.35, markersize=8 if on_front else 6, linewidth=1.2,
            markeredgecolor="black" if on_front else look.colour, zorder=3 if on_front else 2,
        )  # fmt: skip
    # What is within reach at a cost: of more speed, the next arm on the right; of more memory, the last on the left.
    steps = "steps-pre" if c.cost.more_is_better else "steps-post"
    ax.plot(c.x[c.front, 0], c.y[c.front, 0], color="#555555", linewidth=1.2, drawstyle=steps, zorder=1)
    figures.ticks(ax, float(c.x[:, 1].min()), float(c.x[:, 2].max()))
    better = "right" if c.cost.more_is_better else "left"
    ax.set_xlabel(f"{c.cost.label} (better: {better} and {'up' if comparison.higher_is_better else 'down'})")
    ax.margins(0.12)


def _point(row: Row, cost: Cost) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    pairs = [(run.summary.get(cost.key), value) for run, value in row.values.items()]
    pairs = [(x, y) for x, y in pairs if isinstance(x, int | float) and np.isfinite(x)]
    if not pairs:
        return None
    return _spread([x for x, _ in pairs]), _spread([y for _, y in pairs])


def _spread(values: list[float]) -> tuple[float, float, float]:
    """Mean, least and most. The mean of equal numbers can be rounded past them, and no bar has a negative length."""
    low, high = min(values), max(values)
    return min(max(sum(values) / len(values), low), high), low, high
