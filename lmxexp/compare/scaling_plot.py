"""A picture of scaling laws: loss against parameters for each token budget, with the fitted curves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmxexp.compare import figures
from lmxexp.compare.looks import shortened
from lmxexp.compare.scaling import ScalingLaw
from lmxexp.compare.scaling_runs import Fits, formula

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LAWS = 6
BEYOND = 10.0
"""How far past the largest run a law is drawn, dashed."""
_POINTS = 100


def write(fits: Fits, out: Path) -> list[Path]:
    """Write ``scaling.png`` into a directory, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    with figures.style():
        return [figures.save(figure(fits), out / "scaling.png")]


def figure(fits: Fits) -> Figure:
    """A panel for each design: its runs, the law at each token budget, dashed where it goes beyond the runs, and its
    95 % interval at the largest budget. Where all runs have one size, tokens are the x axis."""
    laws = list(fits.laws.items())[:MOST_LAWS]
    columns = min(2, len(laws))
    rows = math.ceil(len(laws) / columns)
    fig, axes = figures.figure(0.6 + 3.6 * rows, rows, columns, sharey=True)
    for ax, (label, law) in zip(axes, laws, strict=False):
        _panel(ax, law)
        ax.set_title(figures.plain(f"{shortened(label)}\n{formula(law)}"), fontsize=10)
    for ax in axes[len(laws) :]:
        ax.set_visible(False)
    axes[0].set_ylim(top=1.04 * max(float(law.loss.max()) for _, law in laws))  # the panels share it
    for ax in axes[::columns]:
        ax.set_ylabel(figures.plain(fits.metric))
    rest = len(fits.laws) - len(laws)
    more = f"; {rest} more design{'s have' if rest > 1 else ' has'} a law" if rest else ""
    fig.suptitle(f"dashed: beyond the runs; shade: 95 % of the law{more}", fontsize=11)
    return fig


def _panel(ax: Axes, law: ScalingLaw) -> None:
    import matplotlib

    on_size = "A" in law.fitted
    x_all, budget_all = (law.n_params, law.n_tokens) if on_size else (law.n_tokens, law.n_params)
    budgets = _levels(budget_all)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(budgets)))
    grid = np.geomspace(x_all.min() / 1.3, x_all.max() * BEYOND, _POINTS)
    inside = grid <= x_all.max() * 1.0001
    for budget, colour in zip(budgets, colours, strict=True):
        of_budget = np.abs(np.log(budget_all / budget)) <= 0.01
        ax.plot(x_all[of_budget], law.loss[of_budget], "o", color=colour, markersize=5, zorder=3)
        y = _at(law, grid, budget, on_size)
        name = f"{'D' if on_size else 'N'} = {figures.compact(float(f'{budget:.3g}'))}"
        ax.plot(grid[inside], y[inside], color=colour, linewidth=1.6, label=name)
        edge = inside.sum() - 1
        ax.plot(grid[edge:], y[edge:], color=colour, linewidth=1.4, linestyle="--")
    band = np.array([_interval(law, x, budgets[-1], on_size) for x in grid])
    ax.fill_between(grid, band[:, 0], band[:, 1], color=colours[-1], alpha=0.18, linewidth=0)
    figures.ticks(ax, grid[0], grid[-1], log=True)
    ax.set_yscale("log")
    _plain_y(ax)
    ax.set_xlabel("parameters N (total)" if on_size else "tokens D")
    if len(budgets) > 1 or not on_size:
        ax.legend(frameon=False, fontsize=8.5, loc="upper right")


def _at(law: ScalingLaw, x: np.ndarray, budget: float, on_size: bool) -> np.ndarray:
    return law.predict(x, budget) if on_size else law.predict(budget, x)


def _interval(law: ScalingLaw, x: float, budget: float, on_size: bool) -> tuple[float, float]:
    return law.interval(x, budget) if on_size else law.interval(budget, x)


def _levels(values: np.ndarray) -> list[float]:
    """The distinct budgets, ascending; those within 1 % are one."""
    levels: list[float] = []
    for value in sorted(values):
        if not levels or value / levels[-1] > 1.01:
            levels.append(float(value))
    return levels


def _plain_y(ax: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
