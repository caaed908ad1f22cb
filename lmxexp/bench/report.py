"""What was measured, as JSON and back, as Markdown, and on the console."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmxexp import run_files
from lmxexp.bench.measure import Spread

ENOUGH_ROUNDS = 5


@dataclass(frozen=True)
class Peak:
    """The speed of square matrix products in one type."""

    by_size: dict[str, float]
    """GFLOP/s by the number of rows."""

    @property
    def gflops(self) -> float:
        """The best."""
        return max(self.by_size.values())


@dataclass
class Row:
    """One contestant in one case. What is None was not measured."""

    case: str
    contestant: str
    precision: str
    """fp32, bf16 or mixed."""
    reason: str | None = None
    """Why it has no time."""
    note: str = ""
    params: int | None = None
    batch_size: int = 0
    seq_len: int = 0
    step_s: Spread | None = None
    """Seconds of a step."""
    tokens_per_s: float | None = None
    flops_per_token: int | None = None
    """Of the model, see `LanguageModel.flops_per_token`; the same for all trainers."""
    mfu: float | None = None
    """The model's FLOPs a second, as a share of `Peak` in the type that products are computed in."""
    peak_gb: float | None = None
    """1e9 bytes."""
    to_first_step_s: float | None = None
    """From nothing but the configuration to the end of the first step."""
    compile_s: float | None = None
    """What the first step took beyond the median of the later ones: tracing and compiling."""
    ratio: Spread | None = None
    """How many times as long as lmxexp's step its own takes."""


@dataclass
class Report:
    """One command's measurements."""

    n_rounds: int
    n_steps: int
    date: str
    command: str
    machine: dict[str, Any]
    """`lmxexp.device.device_info`."""
    packages: dict[str, str | None]
    blas: dict[str, Any]
    git: dict[str, Any] | None = None
    peaks: dict[str, Peak] = field(default_factory=dict)
    """By type: fp32, bf16."""
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """Peers that are not installed, or that a case has none of."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Report:
        """The inverse of `to_json`."""
        peaks = {name: Peak(**peak) for name, peak in content["peaks"].items()}
        rows = []
        for row in content["rows"]:
            values: dict[str, Any] = dict(row)
            values |= {name: Spread(**row[name]) for name in ("step_s", "ratio") if row[name] is not None}
            rows.append(Row(**values))
        return cls(**{**content, "peaks": peaks, "rows": rows})


def save(report: Report, directory: Path) -> tuple[Path, Path]:
    """Write ``<date>-<machine>.md`` and ``.json``, never over others; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    stem, n = f"{report.date[:10]}-{_slug(report)}", 1
    while any((directory / f"{stem}{'' if n == 1 else f'-{n}'}{end}").exists() for end in (".md", ".json")):
        n += 1
    base = f"{stem}{'' if n == 1 else f'-{n}'}"
    text, data = directory / f"{base}.md", directory / f"{base}.json"
    run_files.write_json(data, report.to_json())
    text.write_text(markdown(report), encoding="utf-8")
    return text, data


def load(path: Path) -> Report:
    """What `save` wrote as JSON."""
    return Report.from_json(json.loads(path.read_text(encoding="utf-8")))


def _slug(report: Report) -> str:
    name = str(report.machine.get("name") or report.machine.get("backend") or "machine").lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


HEADINGS = (
    "case",
    "trainer",
    "ms a step",
    "tokens/s",
    "MFU",
    "peak GB",
    "to first step, s",
    "compiling, s",
    "times lmxexp's",
)


def cells(row: Row) -> list[str]:
    """A row under `HEADINGS`."""
    if row.step_s is None:
        return [row.case, row.contestant, *["-"] * (len(HEADINGS) - 2)]
    milliseconds = Spread([1e3 * s for s in row.step_s.rounds])
    return [
        row.case,
        row.contestant,
        _spread(milliseconds, ".1f" if milliseconds.median >= 10 else ".2f"),
        f"{row.tokens_per_s:,.0f}",
        f"{row.mfu:.1%}",
        "-" if row.peak_gb is None else f"{row.peak_gb:.2f}",
        f"{row.to_first_step_s:.1f}",
        f"{row.compile_s:.1f}",
        "" if row.ratio is None else _spread(row.ratio, ".2f"),
    ]


def _spread(spread: Spread, digits: str) -> str:
    return f"{spread.median:{digits}} ({spread.low:{digits}} to {spread.high:{digits}})"


def reasons(report: Report) -> list[str]:
    """Why rows have no time, what is to be known of others, and what was left out."""
    lines = [f"{row.case}, {row.contestant}: not measured: {row.reason}" for row in report.rows if row.reason]
    notes = dict.fromkeys(f"{row.contestant}: {row.note}" for row in report.rows if row.note and not row.reason)
    few = [f"--rounds {report.n_rounds}: a trial; a figure wants {ENOUGH_ROUNDS}"] * (report.n_rounds < ENOUGH_ROUNDS)
    return [*lines, *notes, *report.remarks, *few]


def facts(report: Report) -> list[str]:
    """Machine, versions, the speed of matrix products and what the columns mean, a line each."""
    m, blas = report.machine, report.blas
    memory = f", {m['memory_gb']:.0f} GB" if m.get("memory_gb") else ""
    versions = ", ".join(f"{name} {version}" for name, version in report.packages.items() if version)
    threads = f", threads: {blas['threads']}" if blas.get("threads") else ""
    peaks = "; ".join(
        f"{name} {peak.gflops:,.0f} GFLOP/s (" + ", ".join(f"{n}: {g:,.0f}" for n, g in peak.by_size.items()) + ")"
        for name, peak in report.peaks.items()
    )
    shapes = ", ".join(dict.fromkeys(f"{r.batch_size} x {r.seq_len} tokens" for r in report.rows if r.batch_size))
    return [
        f"machine: {m.get('name')} ({m.get('backend')}), {m.get('cpu_cores')} cores of {m.get('cpu')}{memory}",
        f"versions: Python {m.get('python')}, {versions}; {m.get('os')}",
        f"BLAS: {blas.get('version') or blas.get('kind')}{threads}; "
        f"TF32 for fp32 products: {'on' if m.get('tf32') else 'off'}",
        f"matrix products, by rows: {peaks}",
        f"a step: {shapes or 'none'}; medians of {report.n_rounds} rounds of {report.n_steps} steps each (lowest to "
        "highest), all contestants in turns",
    ]


def markdown(report: Report) -> str:
    """The whole report as a page."""
    table = ["| " + " | ".join(HEADINGS) + " |", "|---|---|" + "---:|" * (len(HEADINGS) - 2)]
    table += ["| " + " | ".join(cells(row)) + " |" for row in report.rows]
    lines = [f"# {report.date[:10]}, {report.machine.get('name')}", "", f"`{report.command}`", ""]
    lines += [f"- {line}" for line in facts(report)]
    lines += ["", *table]
    if beside := reasons(report):
        lines += ["", *(f"- {line}" for line in beside)]
    return "\n".join(lines) + "\n"


def show(report: Report) -> None:
    """Print it."""
    import sys

    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for line in facts(report):
        console.print(line, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i < 2 else "right")
    before = None
    for row in report.rows:
        if before is not None and row.case != before:
            table.add_section()
        own = [row.case if row.case != before else "", *cells(row)[1:]]
        table.add_row(*own, style="dim" if row.reason else "")
        before = row.case
    console.print(table)
    for line in reasons(report):
        console.print(line, markup=False)
