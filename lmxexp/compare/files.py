"""A comparison as Markdown, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from lmxexp.compare import tuned_words
from lmxexp.compare.cells import cells, failed_heading, failed_lines, headings, title
from lmxexp.compare.comparison import Comparison
from lmxexp.compare.outcomes import why
from lmxexp.compare.read import Run
from lmxexp.compare.rows import Row
from lmxexp.compare.tuned import Tuning
from lmxexp.compare.words import sentences

_LEFT = ("arm", "verdict")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def write(comparison: Comparison, out: Path) -> list[Path]:
    """Write ``comparison.md``, ``.csv``, ``.tex`` and ``.json`` into a directory, which is made."""
    out.mkdir(parents=True, exist_ok=True)
    texts = {"md": markdown, "csv": as_csv, "tex": latex, "json": as_json}
    written = []
    for suffix, text in texts.items():
        path = out / f"comparison.{suffix}"
        path.write_text(text(comparison), encoding="utf-8")
        written.append(path)
    return written


def markdown(comparison: Comparison) -> str:
    """The table, the runs that do not count, warnings, and the verdicts in words."""
    parts = [f"**{_markdown(title(comparison))}**", _markdown_table([headings(comparison), *cells(comparison)])]
    tuning = tuned_words.lines(comparison.tuning) if comparison.tuning else []
    for heading, items in (
        (f"{failed_heading(comparison)}:", failed_lines(comparison)),
        ("Warnings:", comparison.warnings),
        ("Tuning:", tuning),
        ("Verdict:", sentences(comparison)),
    ):
        if items:
            parts.append(f"{heading}\n\n" + "\n".join(f"- {_markdown(item)}" for item in items))
        if items is tuning and comparison.tuning:
            parts.append(_markdown_table(tuned_words.table(comparison.tuning)))
    return "\n\n".join(parts) + "\n"


def as_csv(comparison: Comparison) -> str:
    """One line an arm, all digits, empty where there is no number; ``n`` counts seeds."""
    text = io.StringIO()
    rows = records(comparison)
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def latex(comparison: Comparison) -> str:
    """A ``tabular``, to be put into a ``table`` with the package booktabs."""
    columns = headings(comparison)
    places = "".join("l" if heading in _LEFT else "r" for heading in columns)
    lines = [f"\\begin{{tabular}}{{{places}}}", "\\toprule", _latex_row(columns), "\\midrule"]
    lines += [_latex_row(row) for row in cells(comparison)]
    lost = [f"does not count: {line}" for line in failed_lines(comparison)]
    notes = [f"% {' '.join(text.split())}" for text in (title(comparison), *lost, *sentences(comparison))]
    return "\n".join([*notes, *lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def as_json(comparison: Comparison) -> str:
    """Everything, for programs: infinities and NaN as null."""
    c = comparison
    content = {
        "metric": c.metric,
        "higher_is_better": c.higher_is_better,
        "budget": c.budget,
        "baseline": c.baseline.label,
        "effect": c.effect,
        "sweeps": [{"name": sweep.name, "path": str(sweep.path)} for sweep in c.sweeps],
        "arms": [_arm(row, record) for row, record in zip(c.rows, records(c), strict=True)],
        "failed": [_failed(run) for run in c.failed],
        "warnings": c.warnings,
        "tuning": _tuning(c.tuning) if c.tuning else None,
        "sentences": sentences(c),
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat mapping an arm, of plain numbers and texts: what the CSV file holds, and what can go to W&B."""
    return [_record(comparison, row) for row in comparison.rows]


def _record(c: Comparison, row: Row) -> dict[str, Any]:
    s, d, unequal = row.sample, row.difference, row.mismatch
    return {
        "arm": row.arm.label,
        "metric": c.metric,
        "n": s.n if s else 0,
        "runs": len(row.arm.runs),
        "failed": len(row.arm.failed),
        "mean": s.mean if s else None,
        "std": s.std if s else None,
        "low": s.low if s else None,
        "high": s.high if s else None,
        "difference": row.compared.mean if row.compared else None,
        "difference_low": d.low if d else None,
        "difference_high": d.high if d else None,
        "test": d.how if d else None,
        "pairs": d.n[0] if d and d.how == "paired" else None,
        "df": d.df if d else None,
        "p": row.p,
        "p_holm": row.p_holm,
        "verdict": row.verdict.word if row.verdict else "baseline",
        "reason": row.verdict.reason if row.verdict else "",
        "failures": row.verdict.failures if row.verdict else "",
        "failed_runs": "; ".join(f"{run.name}: {why(run)}" for run in row.arm.failed),
        "seeds_needed": row.seeds_needed,
        "seeds_for_effect": row.seeds_for_effect,
        "mismatch": unequal.relative if unequal else None,
        "mismatch_explains": unequal.explains if unequal else None,
        "sensitivity": unequal.sensitivity if unequal else None,
        "sensitivity_source": unequal.source if unequal else None,
        **row.costs,
    }


def _arm(row: Row, record: dict[str, Any]) -> dict[str, Any]:
    runs = [
        {"path": str(run.path), "seed": run.seed, "data_seed": run.data_seed, "value": value}
        for run, value in row.values.items()
    ]
    repeated = [str(run.path) for run in row.arm.repeated]
    return record | {"values": runs, "failed_runs": [_failed(run) for run in row.arm.failed], "repeated": repeated}


def _tuning(tuning: Tuning) -> dict[str, Any]:
    arms = [
        {
            "arm": arm.label,
            "optimum": arm.optimum.value if arm.optimum else None,
            "edge": arm.edge,
            "estimate": arm.estimate,
            "trials": [
                {"value": t.value, "n": t.n, "mean": t.mean, "low": t.low, "high": t.high, "diverged": t.diverged,
                 "unfinished": t.unfinished}
                for t in arm.trials
            ],
        }
        for arm in tuning.arms
    ]  # fmt: skip
    return {"key": tuning.key, "winner": tuning.winner, "arms": arms, "sentences": tuned_words.lines(tuning)}


def _failed(run: Run) -> dict[str, Any]:
    return {"path": str(run.path), "seed": run.seed, "status": run.status, "error": run.error, "why": why(run)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _markdown_table(rows: list[list[str]]) -> str:
    rule = ["---" if heading in _LEFT else "---:" for heading in rows[0]]
    lines = [[_markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (lines[0], rule, *lines[1:]))


def _markdown(text: str) -> str:
    for character in ("\\", "|", "<", "*", "`"):
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _latex_row(texts: list[str]) -> str:
    # A line that begins with [ would be taken for an argument of the \\ before it.
    return " & ".join(f"{{}}{_escaped(t)}" if t.startswith("[") else _escaped(t) for t in texts) + r" \\"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
