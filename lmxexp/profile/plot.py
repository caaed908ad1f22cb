"""A profile as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lmxexp.compare import figures
from lmxexp.profile.report import ranges
from lmxexp.profile.result import Profile, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"forward": "#56B4E9", "backward": "#0072B2", "other": "#E69F00"}
"""Okabe and Ito's, which colour-blind readers tell apart."""
_LEGEND = {"forward": "forward", "backward": "backward", "other": "update, host"}
_INK = "#404040"


def draw(profile: Profile, path: Path) -> Path:
    """One bar a part, forward and backward stacked, above the remainder and the whole step."""
    rows = [*profile.rows, profile.remainder]
    whole = Row(
        "whole step",
        forward_ms=profile.forward_ms,
        backward_ms=profile.backward_ms,
        other_ms=profile.step_ms - profile.forward_ms - profile.backward_ms,
    )
    with figures.style():
        figure, (axes,) = figures.figure(1.5 + 0.34 * (len(rows) + 1))
        for i, row in enumerate([*rows, whole]):
            _bar(axes, i, row, profile)
        ends = [_ends(row) for row in [*rows, whole]]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        axes.set_xlim(low * 1.15, high * 1.2)
        axes.axhline(len(rows) - 0.5, color=_INK, linewidth=0.8)
        axes.axvline(0, color=_INK, linewidth=0.8)
        axes.set_yticks(range(len(rows) + 1), [figures.plain(_name(row)) for row in [*rows, whole]])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("milliseconds a step, each part by itself")
        a = profile.about
        size = f"{a['batch_size']} x {a['seq_len']} tokens, {a['precision']}"
        title = f"{a['name']}: {profile.step_ms:.4g} ms a step of {size}"
        axes.set_title(figures.plain(title), loc="left")
        handles = [axes.barh([0], [0], color=_COLOURS[key], label=label) for key, label in _LEGEND.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        return figures.save(figure, path)


def _pieces(row: Row) -> dict[str, float]:
    return {"forward": row.forward_ms or 0.0, "backward": row.backward_ms or 0.0, "other": row.other_ms or 0.0}


def _ends(row: Row) -> tuple[float, float]:
    pieces = _pieces(row).values()
    return sum(p for p in pieces if p < 0), sum(p for p in pieces if p > 0)


def _bar(axes: Axes, at: int, row: Row, profile: Profile) -> None:
    left = right = 0.0
    for key, width in _pieces(row).items():
        if width < 0:
            left += width
            axes.barh(at, -width, left=left, height=0.66, color=_COLOURS[key])
        else:
            axes.barh(at, width, left=right, height=0.66, color=_COLOURS[key])
            right += width
    text = f" {row.ms:.3g} ms" + (f", {profile.share(row):.1%}" if row.part != "whole step" else "")
    axes.text(right, at, text, va="center", ha="left", fontsize=9, color=_INK)


def _name(row: Row) -> str:
    layers = ranges(row.layers)
    shown = f"{row.part} {row.kind}".strip()
    return f"{shown}  [{layers}]" if layers and len(layers) <= 12 else shown
