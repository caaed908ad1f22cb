"""Pictures of whole curves: the metric against four axes, and its difference to the baseline's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmxexp.compare import figures
from lmxexp.compare.curves import AXES, Axis, Band, Shown, band, difference_bands, lower_is_better
from lmxexp.compare.looks import Look, ordered, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lmxexp.compare.comparison import Comparison

START = 0.2
"""The share of the x axis whose values may leave the picture at the top: the fall from the first loss would press all
that differs between arms into a line."""
LEFT = 0.05
"""The share of a logarithmic x axis that is left out on the left, where nothing but that fall is."""


def four_panels(comparison: Comparison, what: Shown, looks: dict[str, Look]) -> Figure | None:
    """The metric against steps, tokens, FLOPs and seconds; None if nothing was logged."""
    arms = [arm for arm in comparison.arms if arm.runs]
    panels: dict[Axis, dict[str, Band]] = {
        x: {arm.label: band(arm, what.metric, x, what.window) for arm in arms} for x in AXES
    }
    panels = {x: {label: b for label, b in bands.items() if len(b.x)} for x, bands in panels.items()}
    panels = {x: bands for x, bands in panels.items() if bands}
    if not panels:
        return None
    rows = (len(panels) + 1) // 2
    fig, axes = figures.figure(0.8 + 2.7 * rows, rows, min(2, len(panels)), sharey=True)
    alpha = band_opacity(looks)
    log = figures.spans_much(*_span(next(iter(panels.values())), LEFT))  # one scale for all four
    for ax, (x, bands) in zip(axes, panels.items(), strict=False):
        for label in ordered(list(bands), looks):
            _draw(ax, bands[label], looks[label], alpha)
        _frame_x(ax, bands, LEFT, log=log, powers=x == "flops")
        ax.set_xlabel(AXES[x])
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    axes[0].set_ylim(*limits(list(next(iter(panels.values())).values()), lower_is_better(comparison, what)))
    for ax in axes[:: min(2, len(panels))]:
        ax.set_ylabel(figures.plain(_unit(what.metric)))
    fig.suptitle(figures.plain(f"{what.title}\n{seeds_text(panels)}"), fontsize=11)
    figures.legend(fig, [arm.label for arm in arms], looks)
    return fig


def differences(comparison: Comparison, what: Shown, looks: dict[str, Look]) -> Figure | None:
    """Each arm minus the baseline against steps; None without a baseline or a second arm that was logged."""
    bands = difference_bands(comparison, what)
    if not bands:
        return None
    fig, (ax,) = figures.figure(4.0)
    for label in ordered(list(bands), looks):
        _draw(ax, bands[label], looks[label], band_opacity(looks))
    ax.axhline(0, color=looks[comparison.baseline.label].colour, linewidth=2)
    _frame_x(ax, bands)
    shown = [b.x >= b.x[-1] * START for b in bands.values()]
    low = min(b.low[s].min() for b, s in zip(bands.values(), shown, strict=True))
    high = max(b.high[s].max() for b, s in zip(bands.values(), shown, strict=True))
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.06 * (high - low) or 1e-3  # equal curves
    ax.set_ylim(low - pad, high + pad)
    better = "below 0: better" if lower_is_better(comparison, what) else "above 0: better"
    ax.set_ylabel(f"difference ({better})")
    ax.set_xlabel(AXES["step"])
    paired = "paired by seed; band: least to most" if any(b.n > 1 for b in bands.values()) else "of the means"
    title = f"{what.title}\nminus that of {shortened(comparison.baseline.label)}, the baseline\n{paired}"
    fig.suptitle(figures.plain(title), fontsize=11)
    figures.legend(fig, [arm.label for arm in comparison.arms if arm.runs], looks)
    return fig


def seeds_text(panels: dict) -> str:
    """What the bands are."""
    counts = {b.n for bands in panels.values() for b in bands.values()}
    if counts == {1}:
        return "one seed an arm"
    n = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"mean over {n} seeds; band: least to most"


def band_opacity(looks: dict[str, Look]) -> float:
    """Many bands over each other hide the lines."""
    return 0.16 if sum(look.named for look in looks.values()) <= 7 else 0.03


def _draw(ax: Axes, b: Band, look: Look, opacity: float) -> None:
    if not look.named:
        ax.plot(b.x, b.mean, color=look.colour, linewidth=0.8, alpha=0.6)
        return
    if b.n > 1:
        ax.fill_between(b.x, b.low, b.high, color=look.colour, alpha=opacity, linewidth=0)
    ax.plot(b.x, b.mean, color=look.colour, linestyle=look.dash, linewidth=1.6)


def _span(bands: dict[str, Band], left: float) -> tuple[float, float]:
    high = max(b.x[-1] for b in bands.values())
    return max(min(b.x[0] for b in bands.values()), left * high), high


def _frame_x(
    ax: Axes, bands: dict[str, Band], left: float = 0.0, *, log: bool | None = None, powers: bool = False
) -> None:
    low, high = _span(bands, left)
    figures.ticks(ax, low, high, log=log, powers=powers)
    if high > low:
        ax.set_xlim(low if ax.get_xscale() == "log" else low - 0.02 * (high - low), high * 1.02)


def limits(bands: list[Band], falling: bool) -> tuple[float, float]:
    """Of the y axis: all but what leaves the picture at the start."""
    low, high = min(b.low.min() for b in bands), max(b.high.max() for b in bands)
    late = [b.values[:, b.x >= b.x[-1] * START] for b in bands]
    if falling:
        high = max(v.max() for v in late)
    else:
        low = min(v.min() for v in late)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return float(low - pad), float(high + pad)


def _unit(metric: str) -> str:
    units = {"loss": "nats per token", "bpb": "bits per byte", "ppl": "perplexity"}
    unit = units.get(metric.rpartition("/")[2])
    return f"{metric} ({unit})" if unit else metric
