"""Plotly's traces and layouts as plain data: what the page draws, without importing plotly."""

from __future__ import annotations

import base64
import html
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lmxexp.compare.curves import AXES, Axis, Band, Shown, band, difference_bands, lower_is_better
from lmxexp.compare.curves_plot import band_opacity, limits
from lmxexp.compare.looks import Look, look_of, naming, ordered, shortened
from lmxexp.compare.pareto_plot import Cloud, clouds
from lmxexp.compare.plots import forest_rows, forest_text, tuning_limits, verdict_colour

if TYPE_CHECKING:
    from lmxexp.compare.comparison import Comparison
    from lmxexp.compare.rows import Row
    from lmxexp.compare.tuned import TunedArm

Plot = dict[str, Any]
"""``{"data": [traces], "layout": {…}}``."""
MOST_POINTS = 400
_MANY_ARMS, _FEWER_POINTS = 20, 150
_LEGEND = {"font": {"size": 12}, "itemsizing": "constant", "tracegroupgap": 0}
_LINE = {"zeroline": False, "gridcolor": "#e8e8e8", "linecolor": "#444", "ticks": "outside", "automargin": True}


def curves(comparison: Comparison, what: Shown, looks: dict[str, Look]) -> dict[Axis, Plot]:
    """The metric against each axis that was logged."""
    arms = [arm for arm in comparison.arms if arm.runs]
    plots: dict[Axis, Plot] = {}
    for x, title in AXES.items():
        bands = {arm.label: band(arm, what.metric, x, what.window) for arm in arms}
        bands = {label: b for label, b in bands.items() if len(b.x)}
        if bands:
            shown = limits(list(bands.values()), lower_is_better(comparison, what))
            plots[x] = _of_bands(bands, looks, title, what.title, shown)
    return plots


def differences(comparison: Comparison, what: Shown, looks: dict[str, Look]) -> Plot | None:
    """Each arm minus the baseline against steps."""
    bands = difference_bands(comparison, what)
    if not bands:
        return None
    better = "below" if lower_is_better(comparison, what) else "above"
    plot = _of_bands(bands, looks, AXES["step"], f"difference ({better} 0: better)", None)
    plot["layout"]["yaxis"] |= {"zeroline": True, "zerolinecolor": "black", "zerolinewidth": 2}
    return plot


def forest(comparison: Comparison) -> Plot | None:
    """The differences at the end with 95 % intervals."""
    rows, hidden = forest_rows(comparison)
    if not rows:
        return None
    traces = []
    for colour in dict.fromkeys(verdict_colour(row) for row in rows):
        same = [(place, row) for place, row in enumerate(rows) if verdict_colour(row) == colour]
        points = [_interval(row) for _, row in same]
        traces.append({
            "type": "scatter", "mode": "markers", "x": [m for m, _, _ in points], "y": [place for place, _ in same],
            "marker": {"color": colour, "size": 10}, "showlegend": False,
            "error_x": {
                "type": "data", "symmetric": False, "array": [high - m for m, _, high in points],
                "arrayminus": [m - low for m, low, _ in points], "color": colour, "thickness": 2, "width": 0,
            },
            "text": [html.escape(f"{row.arm.label}: {forest_text(comparison, row)}") for _, row in same],
            "hoverinfo": "text",
        })  # fmt: skip
    more = f"; {hidden} arms nearest to 0 are left out" if hidden else ""
    title = html.escape(f"{comparison.metric} minus the baseline's, 95 % interval{more}")
    names = [_text(row.arm.label) for row in rows]
    return {"data": traces, "layout": {
        "xaxis": _LINE | {"title": {"text": title}, "zeroline": True, "zerolinecolor": "black", "zerolinewidth": 2},
        "yaxis": _LINE | {"tickvals": list(range(len(rows))), "ticktext": names, "range": [len(rows) - 0.4, -0.6]},
        "height": 130 + 26 * len(rows), "margin": {"t": 20, "r": 20},
    }}  # fmt: skip


def pareto(comparison: Comparison, looks: dict[str, Look]) -> Plot | None:
    """The metric against speed and memory, side by side."""
    found = clouds(comparison)
    if not found:
        return None
    looks = naming(looks, [c.labels[i] for c in found for i in c.front])
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"height": 480, "margin": {"t": 20}, "legend": _LEGEND}
    named: set[str] = set()
    for number, c in enumerate(found):
        suffix = "" if number == 0 else str(number + 1)
        share = 1 / len(found)
        layout[f"xaxis{suffix}"] = _LINE | {
            "title": {"text": c.cost.label}, "domain": [number * share, (number + 1) * share - 0.04],
            "anchor": f"y{suffix}",
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = _LINE | {"anchor": f"x{suffix}"} | ({"matches": "y"} if number else {})
        traces += _points(c, looks, suffix, named)
        named.update(c.labels)
    layout["yaxis"]["title"] = {"text": html.escape(comparison.metric)}
    return {"data": traces, "layout": layout}


def tuning(comparison: Comparison, looks: dict[str, Look]) -> Plot | None:
    """The metric against the setting that the arms were tuned in."""
    t = comparison.tuning
    if t is None or not any(math.isfinite(m) for arm in t.arms for m in arm.mean):
        return None
    finite = [m for arm in t.arms for m in (*arm.low, *arm.high) if math.isfinite(m)]
    traces = [trace for arm in t.arms for trace in _tuned(arm, look_of(arm.label, looks))]
    return {"data": traces, "layout": {
        "xaxis": _LINE | {"type": "log", "title": {"text": html.escape(t.key)}},
        "yaxis": _LINE | {"title": {"text": html.escape(t.metric)},
                          "range": list(tuning_limits(finite, comparison.higher_is_better))},
        "height": 460, "margin": {"t": 20}, "legend": _LEGEND,
    }}  # fmt: skip


def _interval(row: Row) -> tuple[float, float, float]:
    assert row.compared is not None
    mean = row.compared.mean
    return (mean, row.difference.low, row.difference.high) if row.difference else (mean, mean, mean)


def packed(values: np.ndarray) -> dict[str, str]:
    """Numbers in the form that plotly.js unpacks: half as long as their digits, exact to seven of them."""
    return {"dtype": "f4", "bdata": base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()}


def downsampled(b: Band, at_most: int) -> Band:
    """Fewer points, evenly, the first and the last among them."""
    if len(b.x) <= at_most:
        return b
    kept = np.unique(np.round(np.linspace(0, len(b.x) - 1, at_most)).astype(int))
    return Band(b.x[kept], b.values[:, kept], b.seeds)


def _of_bands(
    bands: dict[str, Band], looks: dict[str, Look], x: str, y: str, shown: tuple[float, float] | None
) -> Plot:
    at_most = MOST_POINTS if len(bands) <= _MANY_ARMS else _FEWER_POINTS
    opacity = band_opacity(looks)
    traces: list[dict[str, Any]] = []
    rank = {label: i for i, label in enumerate(looks)}
    for label in ordered(list(bands), looks):
        traces += _band(label, downsampled(bands[label], at_most), looks[label], opacity, rank[label])
    axis = _LINE | {"title": {"text": html.escape(y)}} | ({"range": list(shown)} if shown else {})
    legend = _LEGEND | {"traceorder": "normal"}
    layout = {"xaxis": _LINE | {"title": {"text": x}}, "yaxis": axis, "height": 500, "legend": legend}
    return {"data": traces, "layout": layout | {"margin": {"t": 20}}}


def _band(label: str, b: Band, look: Look, opacity: float, rank: int) -> list[dict[str, Any]]:
    x, name = packed(b.x), _text(label)
    line = {"color": look.colour, "dash": look.plotly_dash, "width": 2 if look.named else 1}
    mean = {
        "type": "scatter", "mode": "lines", "x": x, "y": packed(b.mean), "name": name, "legendgroup": name,
        "line": line, "legendrank": rank, "hovertemplate": f"%{{y:.5g}} at %{{x:.4g}}<extra>{name}</extra>",
    }  # fmt: skip
    if b.n < 2 or not look.named:
        return [mean]
    edge = {
        "type": "scatter", "mode": "lines", "x": x, "legendgroup": name, "showlegend": False, "hoverinfo": "skip",
        "line": {"width": 0, "color": look.colour},
    }  # fmt: skip
    fill = {"fill": "tonexty", "fillcolor": _transparent(look.colour, opacity)}
    return [edge | {"y": packed(b.low)}, edge | fill | {"y": packed(b.high)}, mean]


def _points(c: Cloud, looks: dict[str, Look], suffix: str, named: set[str]) -> list[dict[str, Any]]:
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    shape = "vh" if c.cost.more_is_better else "hv"
    line = {"color": "#555", "width": 1.5, "shape": shape}
    traces: list[dict[str, Any]] = [axes | {
        "type": "scatter", "mode": "lines", "x": c.x[c.front, 0].tolist(), "y": c.y[c.front, 0].tolist(), "line": line,
        "showlegend": False, "hoverinfo": "skip",
    }]  # fmt: skip
    for i, label in enumerate(c.labels):
        look, on_front, name = looks[label], i in c.front, _text(label)
        colour = look.colour if on_front else _transparent(look.colour, 0.35)
        bars = {
            f"error_{axis}": {
                "type": "data", "symmetric": False, "array": [v[2] - v[0]], "arrayminus": [v[0] - v[1]],
                "color": colour, "thickness": 1.2, "width": 0,
            }
            for axis, v in (("x", c.x[i].tolist()), ("y", c.y[i].tolist()))
        }  # fmt: skip
        marker = {"symbol": look.plotly_marker, "color": colour, "size": 12 if on_front else 9}
        marker["line"] = {"color": "black" if on_front else colour, "width": 1}
        said = f"{html.escape(label)}{'' if on_front else ' (another is better in both)'}"
        traces.append(axes | bars | {
            "type": "scatter", "mode": "markers", "x": [c.x[i, 0]], "y": [c.y[i, 0]], "name": name,
            "legendgroup": name, "showlegend": label not in named, "marker": marker,
            "hovertemplate": f"%{{y:.5g}} at %{{x:.4g}}<extra>{said}</extra>",
        })  # fmt: skip
    return traces


def _tuned(arm: TunedArm, look: Look) -> list[dict[str, Any]]:
    some, name = [trial for trial in arm.trials if trial.n], _text(arm.label)
    bars = {
        "type": "data", "symmetric": False, "array": [t.high - t.mean for t in some],
        "arrayminus": [t.mean - t.low for t in some], "thickness": 1.2, "width": 3,
    }  # fmt: skip
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines+markers", "x": [t.value for t in some], "y": [t.mean for t in some],
        "error_y": bars, "name": name, "legendgroup": name, "line": {"color": look.colour, "dash": look.plotly_dash},
        "marker": {"symbol": look.plotly_marker, "size": 8, "color": look.colour},
    }]  # fmt: skip
    best = arm.optimum
    if best is not None:
        ring = {"symbol": "circle-open", "size": 20, "color": look.colour, "line": {"width": 2.5}}
        traces.append({
            "type": "scatter", "mode": "markers", "x": [best.value], "y": [best.mean], "marker": ring,
            "legendgroup": name, "showlegend": False, "hovertemplate": f"optimum %{{x:.3g}}<extra>{name}</extra>",
        })  # fmt: skip
    return traces


def _text(label: str) -> str:
    """What plotly takes for HTML."""
    return html.escape(shortened(label))


def _transparent(colour: str, opacity: float) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},{opacity})"
