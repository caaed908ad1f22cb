"""One picture a mixer, with the others in grey behind it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmxexp.card.read import Card, Mixer, Spread
from lmxexp.card.table import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GREY, _INK, _OTHERS = "#b8b8b8", "#404040", "#808080"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which colour-blind readers tell apart."""
_GAP = 0.065
"""Between two names at the ends of lines, in heights of a panel."""
_PANELS = (
    ("train_tokens_per_s", "training, tokens/s"),
    ("decode_tokens_per_s", "decoding one sequence, tokens/s"),
    ("state_bytes", "state of one sequence, bytes"),
    ("train_peak_gb", "peak memory of training, GB"),
)


def names(card: Card) -> list[str]:
    """The file of each mixer: ``card_mha.png``."""
    plain = [re.sub(r"[^\w.-]+", "_", m.label).strip("_") for m in card.mixers]
    return [f"card_{name}{f'_{i}' if name in plain[:i] else ''}.png" for i, name in enumerate(plain)]


def write(card: Card, out: Path) -> list[Path]:
    """Draw every mixer into a directory."""
    paths = [out / name for name in names(card)]
    for i, (mixer, path) in enumerate(zip(card.mixers, paths, strict=True)):
        draw(card, mixer, path, _COLOURS[i % len(_COLOURS)])
    return paths


def draw(card: Card, mixer: Mixer, path: Path, colour: Any) -> None:
    """Accuracies, losses, and speeds, state and memory against the length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.4), dpi=110, layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.12, h_pad=0.12)
    (first, *above), (second, *below) = figure.subplots(2, 3)
    others = [m for m in card.mixers if m is not mixer]
    _accuracies(first, card, mixer, others, colour)
    _losses(second, card, mixer, colour)
    for panel, (name, title) in zip([*above, *below], _PANELS, strict=True):
        _curve(panel, name, title, mixer, others, colour, card.lengths)
    figure.suptitle(_title(mixer), x=0.01, ha="left", fontsize=15, fontweight="bold", color=colour)
    figure.savefig(path)


def _title(mixer: Mixer) -> str:
    params = [] if mixer.params is None else [f"{mixer.params:,} parameters"]
    n = max((s.n for s in mixer.scores.values()), default=0)
    return "   ·   ".join([mixer.label, *params, *([f"mean and range of {n} seeds"] if n > 1 else [])])


def _is_loss(card: Card, task: str) -> bool:
    return card.metrics[task] == "eval/loss"


def _accuracies(axes: Axes, card: Card, mixer: Mixer, others: Sequence[Mixer], colour: Any) -> None:
    tasks = [task for task in card.metrics if not _is_loss(card, task)]
    axes.set_title("accuracy, %", loc="left", fontsize=10, color=_INK)
    for i, task in enumerate(tasks):
        value = mixer.scores.get(task)
        if value is None:
            axes.text(i, 2, "no run", ha="center", color=_INK, fontsize=9)
            continue
        axes.bar(i, 100 * value.mean, width=0.6, color=colour)
        top = max(100 * s.high for s in [value, *(m.scores[task] for m in others if task in m.scores)])
        if value.n > 1:
            axes.plot([i, i], [100 * value.low, 100 * value.high], color=_INK, linewidth=1.4, solid_capstyle="butt")
        axes.text(i, top + 2, f"{100 * value.mean:.1f}", ha="center", fontsize=10, fontweight="bold", color=colour)
    for task_index, task in enumerate(tasks):
        for other in others:
            if task in other.scores:
                height = 100 * other.scores[task].mean
                span = [task_index - 0.36, task_index + 0.36]
                axes.plot(span, [height, height], color=_GREY, linewidth=1.8, label="the others")
    handles = axes.get_legend_handles_labels()[0][:1]
    if handles:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.42, 1.1), fontsize=9, frameon=False)
    axes.set_xticks(range(len(tasks)), tasks, fontsize=10)
    axes.set_ylim(0, 110)
    axes.set_yticks(range(0, 101, 25))
    _plain(axes)


def _losses(axes: Axes, card: Card, mixer: Mixer, colour: Any) -> None:
    """The first loss of every mixer, one below the other."""
    task = next((task for task in card.metrics if _is_loss(card, task)), None)
    scored = [m for m in card.mixers if task in m.scores]
    if task is None or not scored:
        axes.set_axis_off()
        return
    axes.set_title(f"{heading(card, task)}, nats per token", loc="left", fontsize=10, color=_INK)
    for i, m in enumerate(scored):
        value, own = m.scores[task], m is mixer
        axes.plot([value.low, value.high], [i, i], color=colour if own else _GREY, linewidth=2)
        axes.plot([value.mean], [i], marker="o", markersize=9 if own else 7, color=colour if own else _GREY)
        if own:
            text = f"{value.mean:.3f}"
            axes.annotate(text, (value.mean, i), (0, 8), textcoords="offset points", ha="center", va="bottom",
                          fontsize=10, fontweight="bold", color=colour)  # fmt: skip
    axes.set_yticks(range(len(scored)), [m.label for m in scored])
    axes.set_ylim(len(scored) - 0.4, -0.8)
    low, high = (pick(f(m.scores[task]) for m in scored) for pick, f in ((min, _low), (max, _high)))
    margin = max(0.15 * (high - low), 0.005 * high)
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=5)
    _plain(axes, "x")
    for label, m in zip(axes.get_yticklabels(), scored, strict=True):
        label.set_color(colour if m is mixer else _OTHERS)
        label.set_fontweight("bold" if m is mixer else "normal")


def _low(value: Spread) -> float:
    return value.low


def _high(value: Spread) -> float:
    return value.high


def _curve(
    axes: Axes, name: str, title: str, mixer: Mixer, others: Sequence[Mixer], colour: Any, lengths: Sequence[int]
) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    ends: list[tuple[float, str]] = []
    for other in others:
        if curve := other.curves.get(name):
            axes.plot(*_means(curve), color=_GREY, linewidth=1.2, zorder=1)
            ends.append((_last(curve), other.label))
    if curve := mixer.curves.get(name):
        x, y = _means(curve)
        axes.fill_between(x, [s.low for s in curve.values()], [s.high for s in curve.values()], color=colour, alpha=0.2)
        axes.plot(x, y, color=colour, linewidth=2.4, marker="o", markersize=5, zorder=3)
        ends.append((_last(curve), mixer.label))
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_INK, fontsize=9)
    if not ends:
        axes.set(xticks=[], yticks=[])
        return
    axes.set_xlabel("tokens in the sequence", fontsize=9, color=_INK)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if lengths:
        axes.set_xticks(list(lengths), [str(n) for n in lengths])
        axes.set_xlim(lengths[0] * 0.85, lengths[-1] * 1.15)
    _room(axes, _values(name, [mixer, *others]))
    _labels_at_the_ends(axes, ends, mixer.label, colour)
    _plain(axes)


def _means(curve: dict[int, Spread]) -> tuple[list[int], list[float]]:
    return list(curve), [s.mean for s in curve.values()]


def _last(curve: dict[int, Spread]) -> float:
    return curve[max(curve)].mean


def _values(name: str, mixers: Sequence[Mixer]) -> list[float]:
    return [v for m in mixers for s in m.curves.get(name, {}).values() for v in (s.low, s.high)]


def _room(axes: Axes, values: Sequence[float]) -> None:
    """At least a factor of four from bottom to top: a flat line shall look flat."""
    if not values or min(values) <= 0:
        return
    low, high = min(values) / 1.25, max(values) * 1.25
    if high / low < 4:
        middle = (low * high) ** 0.5
        low, high = middle / 2, middle * 2
    axes.set_ylim(low, high)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    subs = (1.0, 2.0, 5.0) if high / low < 100 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: si(y)))
    axes.yaxis.set_minor_locator(NullLocator())


def _labels_at_the_ends(axes: Axes, ends: list[tuple[float, str]], own: str, colour: Any) -> None:
    """Names beside the ends of the lines, moved apart where they would overlap; of too many, the mixer's own alone."""
    if len(ends) > 9:
        ends = [end for end in ends if end[1] == own]
    to_axes: Callable[[float], float] = lambda y: float(
        axes.transAxes.inverted().transform(axes.transData.transform((1.0, y)))[1]
    )
    heights: list[float] = []
    places = sorted((to_axes(y), label) for y, label in ends)
    for height, _ in places:
        heights.append(max([height, *(h + _GAP for h in heights[-1:])]))
    for i in reversed(range(len(heights))):  # back from above the top
        heights[i] = min(heights[i], 1.0 - (len(heights) - 1 - i) * _GAP)
    for height, (_, label) in zip(heights, places, strict=True):
        mine = label == own
        axes.annotate(
            label,
            (1.0, height),
            xycoords="axes fraction",
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=colour if mine else _OTHERS,
            fontweight="bold" if mine else "normal",
            annotation_clip=False,
        )


def _plain(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.grid(axis=grid, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=9)


def si(value: float) -> str:
    """``12k``, ``3.4M``."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"
