"""A comparison as one page that needs no network: everything it shows and draws with is in the file."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxexp.compare import html_plots, tuned_words
from lmxexp.compare.axes import as_written
from lmxexp.compare.cells import cells, failed_heading, failed_lines, headings, title
from lmxexp.compare.curves import AXES, shown
from lmxexp.compare.diff import differences
from lmxexp.compare.flips import flips
from lmxexp.compare.looks import looks
from lmxexp.compare.words import sentences

if TYPE_CHECKING:
    from lmxexp.compare.comparison import Comparison

FILE_NAME = "comparison.html"
_MANY = 12
"""Sentences that fill no more than the first screen."""
MOST_DIFFS = 30
"""Arms whose configuration is listed against the baseline's."""
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)
"""What the browser may load: nothing from outside. Pictures are saved by way of blobs."""
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; margin: 1.5em auto; max-width: 1200px; padding: 0 1em }
h1 { font-size: 1.35em } h2 { font-size: 1.1em; margin-top: 1.8em }
table { border-collapse: collapse; font-size: 13px } .wide { overflow-x: auto }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 2px solid #444; vertical-align: bottom } .left { text-align: left }
td.verdict { white-space: normal; min-width: 12em }
.better { color: #0072B2; font-weight: 600 } .worse { color: #B34700; font-weight: 600 } .warn { color: #8A5A00 }
select, label { font: inherit; margin-right: 1em } summary { cursor: pointer; margin: .3em 0 } .note { color: #555 }
"""
_SCRIPT = """
const options = {
  responsive: true, displaylogo: false, toImageButtonOptions: {scale: 2},
  showSendToCloud: false, plotlyServerURL: '', modeBarButtonsToRemove: ['sendChartToCloud', 'sendDataToCloud']
};
const font = {family: 'system-ui, sans-serif', size: 13};
function draw(id, plot, changes) {
  const layout = Object.assign({font: font, paper_bgcolor: 'white', plot_bgcolor: 'white'}, plot.layout, changes);
  return Plotly.react(id, plot.data, layout, options);
}
for (const [id, plot] of Object.entries(PLOTS)) draw(id, plot, {});
function drawCurves() {
  const plot = CURVES[document.getElementById('x').value];
  const log = document.getElementById('log').checked ? 'log' : 'linear';
  const yLog = document.getElementById('ylog').checked;
  const changes = {xaxis: Object.assign({}, plot.layout.xaxis, {type: log})};
  if (yLog) {
    changes.yaxis = Object.assign({}, plot.layout.yaxis, {type: 'log'});
    if (changes.yaxis.range) changes.yaxis.range = changes.yaxis.range.map(v => Math.log10(Math.max(v, 1e-12)));
  }
  draw('curves', plot, changes);
}
if (Object.keys(CURVES).length) {
  for (const id of ['x', 'log', 'ylog']) document.getElementById(id).addEventListener('change', drawCurves);
  drawCurves();
}
"""


def write(comparison: Comparison, out: Path) -> Path:
    """Write ``comparison.html`` into a directory, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    path.write_text(page(comparison), encoding="utf-8")
    return path


def page(comparison: Comparison) -> str:
    """The HTML: verdicts and table as they are, and plots that a script in it draws."""
    every, what = looks(comparison), shown(comparison.arms, comparison.metric)
    curves = html_plots.curves(comparison, what, every)
    plots = {
        "differences": html_plots.differences(comparison, what, every),
        "forest": html_plots.forest(comparison),
        "pareto": html_plots.pareto(comparison, every),
        "tuning": html_plots.tuning(comparison, every),
    }
    plots = {name: plot for name, plot in plots.items() if plot is not None}
    name = title(comparison)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(name)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>',
        f"<h1>{_text(name)}</h1>",
        _folded(sentences(comparison), f"verdicts on {len(comparison.rows) - 1} arms, in words"),
        _list("Warnings", comparison.warnings, "warn"),
        _table(comparison),
        _list(failed_heading(comparison), failed_lines(comparison, 50)),
        _curves(list(curves), what.title),
        _list("Where rankings flip", flips(comparison)),
        *(_plot(plot, heading, note) for plot, (heading, note) in _HEADINGS.items() if plot in plots),
        _list("", tuned_words.lines(comparison.tuning) if comparison.tuning else []),
        _configurations(comparison),
        "<noscript><p>The plots need JavaScript; the PNG files beside this page do not.</p></noscript>",
        f"<script>{_plotly()}</script>",
        f"<script>const CURVES = {_json(curves)};\nconst PLOTS = {_json(plots)};{_SCRIPT}</script>",
        "</body></html>\n",
    ]
    return "\n".join(part for part in parts if part)


_HEADINGS = {
    "differences": (
        "Curves minus the baseline's",
        "Paired by seed where the arms share at least two; band: least to most over seeds.",
    ),
    "forest": ("Differences at the end", "Blue: better. Vermilion: worse. Grey: no verdict."),
    "pareto": (
        "Against speed and memory",
        "The line joins the arms that no other beats in both; the others are faded. Bars: least to most over seeds.",
    ),
    "tuning": ("Tuned", "Mean over seeds; bars: least to most; ring: the optimum of each arm."),
}


def _curves(axes: list, what: str) -> str:
    if not axes:
        return "<p>No curves: no metrics.jsonl was found, or nothing in it.</p>"
    options = "".join(f'<option value="{axis}">{_text(AXES[axis])}</option>' for axis in axes)
    return (
        f'<h2>Curves: {_text(what)}</h2><p class="note">Mean over seeds; band: least to most. The start of the fall '
        f"is beyond the frame; a double click shows all.</p>"
        f'<p><label>against <select id="x" autocomplete="off">{options}</select></label>'
        f'<label><input type="checkbox" id="log" autocomplete="off"> logarithmic x</label>'
        f'<label><input type="checkbox" id="ylog" autocomplete="off"> logarithmic y</label></p><div id="curves"></div>'
    )


def _plot(name: str, heading: str, note: str) -> str:
    return f'<h2>{heading}</h2><p class="note">{note}</p><div id="{name}"></div>'


def _table(comparison: Comparison) -> str:
    columns = headings(comparison)
    left = [heading in ("arm", "verdict") for heading in columns]
    head = "".join(f"<th{_left(is_left)}>{_text(h)}</th>" for h, is_left in zip(columns, left, strict=True))
    rows = []
    for row, texts in zip(comparison.rows, cells(comparison), strict=True):
        word = row.verdict.word if row.verdict else ""
        row_cells = []
        for heading, is_left, text in zip(columns, left, texts, strict=True):
            if heading == "verdict":
                row_cells.append(f'<td class="left verdict {word if word in ("better", "worse") else ""}">')
            else:
                row_cells.append(f"<td{_left(is_left)}>")
            row_cells.append(f"{_text(text)}</td>")
        rows.append(f"<tr>{''.join(row_cells)}</tr>")
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _configurations(comparison: Comparison) -> str:
    base = comparison.baseline
    others = [arm for arm in comparison.arms[1:] if arm.runs]
    if not base.runs or not others:
        return ""
    parts = ["<h2>Configurations</h2>"]
    for arm in others[:MOST_DIFFS]:
        found = [d for d in differences(base.runs[0], arm.runs[0]) if d[0] not in ("seed", "data.seed")]
        rows = "".join(
            f'<tr><td class="left">{_text(key)}</td><td class="left">{_text(as_written(x))}</td>'
            f'<td class="left">{_text(as_written(y))}</td></tr>'
            for key, x, y in found
        )
        parts.append(
            f"<details><summary>{_text(arm.label)}: {len(found)} settings differ from {_text(base.label)}</summary>"
            f'<div class="wide"><table><thead><tr><th class="left">setting</th>'
            f'<th class="left">{_text(base.label)}</th>'
            f'<th class="left">{_text(arm.label)}</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
        )
    if len(others) > MOST_DIFFS:
        parts.append(f"<p>{len(others) - MOST_DIFFS} more arms: python -m lmxexp.compare --diff RUN RUN</p>")
    return "\n".join(parts)


def _list(heading: str, items: list[str], style: str = "") -> str:
    if not items:
        return ""
    head = f"<h2>{_text(heading)}</h2>" if heading else ""
    listed = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"{head}<ul{f' class={style}' if style else ''}>{listed}</ul>"


def _folded(items: list[str], summary: str) -> str:
    """A list that many items do not put before all else."""
    listed = _list("", items)
    return listed if len(items) <= _MANY else f"<details><summary>{_text(summary)}</summary>{listed}</details>"


def _left(is_left: bool) -> str:
    return ' class="left"' if is_left else ""


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _json(content: Any) -> str:
    """As a script may hold it: nothing in it can end the script."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    """The library itself. Read from the package, whose import alone would take longer than the rest of the page."""
    import importlib.util

    spec = importlib.util.find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
