"""A comparison in pictures: PNG files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lmxexp.compare import curves_plot, figures, pareto_plot
from lmxexp.compare.cells import number
from lmxexp.compare.curves import shown
from lmxexp.compare.looks import GREY, VERDICTS, Look, look_of, looks, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lmxexp.compare.comparison import Comparison
    from lmxexp.compare.rows import Row
    from lmxexp.compare.tuned import TunedArm

MOST_ROWS = 40
"""Of the forest plot: a page."""


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write the pictures that the runs have data for into a directory, which is made.

    ``curves.png``: the metric against steps, tokens, FLOPs and seconds. ``differences.png``: against steps, minus the
    baseline. ``forest.png``: the differences at the end with 95 % intervals. ``pareto.png``: against speed and memory.
    ``tuning.png``: against the setting that the arms were tuned in.
    """
    out.mkdir(parents=True, exist_ok=True)
    every, what = looks(comparison), shown(comparison.arms, comparison.metric)
    with figures.style():
        drawn = {
            "curves": curves_plot.four_panels(comparison, what, every),
            "differences": curves_plot.differences(comparison, what, every),
            "forest": forest(comparison),
            "pareto": pareto_plot.figure(comparison, every),
            "tuning": tuning(comparison, every),
        }
        return [figures.save(fig, out / f"{name}.png") for name, fig in drawn.items() if fig is not None]


def forest(comparison: Comparison) -> Figure | None:
    """The difference of each arm to the baseline with its 95 % interval; None where there is none."""
    rows, hidden = forest_rows(comparison)
    if not rows:
        return None
    longest = max(len(shortened(row.arm.label)) for row in rows)
    fig, (ax,) = figures.figure(1.5 + 0.28 * len(rows))
    ax.axvline(0, color="black", linewidth=1.2)
    lows, highs = [0.0], [0.0]
    for place, row in enumerate(rows):
        assert row.compared is not None
        colour = verdict_colour(row)
        if row.difference is not None:
            ax.plot([row.difference.low, row.difference.high], [place, place], color=colour, linewidth=2.2)
            lows.append(row.difference.low)
            highs.append(row.difference.high)
        hollow = row.difference is None
        ax.plot(row.compared.mean, place, "o", color=colour, markersize=7, fillstyle="none" if hollow else "full")
        lows.append(row.compared.mean)
        highs.append(row.compared.mean)
    span = (max(highs) - min(lows)) or 1.0
    ax.set_xlim(min(lows) - 0.05 * span, max(highs) + 0.05 * span)
    figures.ticks(ax, min(lows), max(highs), log=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), [figures.plain(shortened(row.arm.label)) for row in rows])
    ax.tick_params(axis="y", length=0, labelsize=9 if longest < 40 else 8)
    for place, row in enumerate(rows):
        ax.annotate(
            forest_text(comparison, row), (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=9,
            color=verdict_colour(row) if verdict_colour(row) != GREY else "#555555", annotation_clip=False,
        )  # fmt: skip
    good, bad = ("worse", "better") if comparison.higher_is_better else ("better", "worse")
    ax.set_xlabel(figures.plain(f"← {good}        {bad} →\ndifference in {comparison.metric}, 95 % interval"))
    ax.grid(False, axis="y")
    more = f"\n{hidden} arms in between are left out: those nearest to 0" if hidden else ""
    fig.suptitle(figures.plain(f"arms minus {shortened(comparison.baseline.label)}, the baseline{more}"), fontsize=11)
    return fig


def forest_rows(comparison: Comparison) -> tuple[list[Row], int]:
    """The arms of the forest plot, and how many are too many for it: those nearest to the baseline."""
    rows = [row for row in comparison.rows[1:] if row.compared is not None]
    far = sorted(rows, key=lambda row: -abs(row.compared.mean) if row.compared else math.inf)[:MOST_ROWS]
    kept = {row.arm.label for row in far}
    return [row for row in rows if row.arm.label in kept], len(rows) - len(kept)


def forest_text(comparison: Comparison, row: Row) -> str:
    """``-0.0123 better``."""
    assert row.compared is not None
    assert row.verdict is not None
    return f"{number(comparison, row.compared.mean, signed=True)}  {row.verdict.word}"


def verdict_colour(row: Row) -> str:
    return VERDICTS.get(row.verdict.word if row.verdict else "", GREY)


def tuning(comparison: Comparison, every: dict[str, Look]) -> Figure | None:
    """The metric of each arm against the setting that it was tuned in; None where none was."""
    t = comparison.tuning
    if t is None or not any(math.isfinite(m) for arm in t.arms for m in arm.mean):
        return None
    fig, (ax,) = figures.figure(4.0)
    finite = [m for arm in t.arms for m in (*arm.low, *arm.high) if math.isfinite(m)]
    low, high = tuning_limits(finite, comparison.higher_is_better)
    for arm in t.arms:
        _tuned(ax, arm, look_of(arm.label, every), low, high)
    ax.set_ylim(low, high)
    values = [value for arm in t.arms for value in arm.values]
    figures.ticks(ax, min(values), max(values), log=True)
    ax.set_xticks(sorted(set(values)) if len(set(values)) <= 8 else ax.get_xticks())
    ax.margins(x=0.06)
    ax.set_xlabel(figures.plain(t.key))
    ax.set_ylabel(figures.plain(t.metric))
    title = "mean over seeds, bars: least to most; ring: the optimum; cross: diverged, or not all seeds"
    fig.suptitle(figures.plain(f"{t.metric} against {t.key}\n{title}"), fontsize=11)
    labels = {arm.label: look_of(arm.label, every) for arm in t.arms}
    figures.legend(fig, list(labels), labels)
    return fig


def tuning_limits(values: list[float], higher: bool) -> tuple[float, float]:
    """Limits that show what is near the optimum: a learning rate that barely converged would hide it."""
    ordered = sorted(values, reverse=higher)
    best, middle, worst = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    reach = min(abs(worst - best), 3 * abs(middle - best) or abs(worst - best)) or abs(best) * 0.05 or 1.0
    return (best - 1.12 * reach, best + 0.08 * reach) if higher else (best - 0.08 * reach, best + 1.12 * reach)


def _tuned(ax: Axes, arm: TunedArm, look: Look, low: float, high: float) -> None:
    some = [trial for trial in arm.trials if trial.n]
    if some:
        x, y = [t.value for t in some], [t.mean for t in some]
        spread = [[t.mean - t.low for t in some], [t.high - t.mean for t in some]]
        ax.errorbar(
            x, y, yerr=spread, color=look.colour, linestyle=look.dash, marker=look.marker, linewidth=1.5, capsize=2,
            markersize=5,
        )  # fmt: skip
    best = arm.optimum
    if best is not None:
        ax.plot(best.value, best.mean, "o", markersize=14, fillstyle="none", color=look.colour, markeredgewidth=1.8)
    lost = [trial.value for trial in arm.trials if not trial.complete]
    edge = high - 0.03 * (high - low) if arm.sign > 0 else low + 0.03 * (high - low)
    ax.plot(lost, [edge] * len(lost), "x", color=look.colour, markersize=8, markeredgewidth=1.8)
