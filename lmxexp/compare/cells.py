"""A comparison as text: the cells of its table, and its runs that do not count."""

from __future__ import annotations

from lmxexp.compare.comparison import Comparison
from lmxexp.compare.digits import chance, count, decimals, fixed, percent
from lmxexp.compare.outcomes import why
from lmxexp.compare.rows import Row


def headings(comparison: Comparison) -> list[str]:
    """Of the columns."""
    return [
        "arm",
        "n",
        f"{comparison.metric} ± std",
        "95 % CI",
        "difference [95 % CI]",
        "p (Holm)",
        "verdict",
        "params",
        "FLOPs/token",
        f"mismatch ({comparison.budget})",
        "tokens/s",
        "peak GB",
    ]


def cells(comparison: Comparison) -> list[list[str]]:
    """The rows, the baseline's first, all numbers of the metric in the same digits."""
    places = _places(comparison)
    return [_cells(row, places) for row in comparison.rows]


def number(comparison: Comparison, value: float | None, *, signed: bool = False) -> str:
    """A value of the metric as the table shows it."""
    return fixed(value, _places(comparison), signed=signed)


def interval(low: float | None, high: float | None, places: int, *, signed: bool = False) -> str:
    return "-" if low is None else f"[{fixed(low, places, signed=signed)}, {fixed(high, places, signed=signed)}]"


def title(comparison: Comparison) -> str:
    """``sweep NAME: eval/loss, lower is better; 12 runs in 4 arms``."""
    names = ", ".join(dict.fromkeys(sweep.name for sweep in comparison.sweeps))
    direction = "higher" if comparison.higher_is_better else "lower"
    n_arms = len(comparison.rows)
    n_runs = sum(len(arm.runs) for arm in comparison.arms)
    counts = f"{n_runs} run{'s' * (n_runs != 1)} in {n_arms} arm{'s' * (n_arms > 1)}"
    return f"{f'{names}: ' if names else ''}{comparison.metric}, {direction} is better; {counts}"


def failed_heading(comparison: Comparison) -> str:
    n = len(comparison.failed)
    return f"{n} run{' does' if n == 1 else 's do'} not count"


def failed_lines(comparison: Comparison, at_most: int | None = None) -> list[str]:
    """The runs that do not count, with their reasons."""
    shown = sorted(comparison.failed, key=lambda run: run.status == "waiting")[:at_most]
    lines = [f"{run.name}: {why(run)}" for run in shown]
    rest = len(comparison.failed) - len(shown)
    return [*lines, f"and {rest} more"] if rest else lines


def _cells(row: Row, places: int) -> list[str]:
    s, d = row.sample, row.difference
    spread = f" ± {fixed(s.std, places)}" if s and s.std is not None else ""
    of_baseline = row.verdict is None
    if d is not None:
        difference = f"{fixed(d.mean, places, signed=True)} {interval(d.low, d.high, places, signed=True)}"
    else:
        difference = fixed(row.compared.mean, places, signed=True) if row.compared else "-"
    unequal = percent(row.mismatch.relative) if row.mismatch else "-"
    return [
        row.arm.label,
        _n(row),
        f"{fixed(s.mean, places)}{spread}" if s else "-",
        interval(s.low, s.high, places) if s else "-",
        "" if of_baseline else difference,
        "" if of_baseline else chance(row.p_holm),
        "baseline" if row.verdict is None else row.verdict.text,
        count(row.costs["params"]),
        count(row.costs["flops_per_token"]),
        "" if of_baseline else unequal,
        count(row.costs["tokens_per_s"]),
        _gb(row.costs["peak_gb"]),
    ]


def _n(row: Row) -> str:
    """``3``; ``2 of 3`` where runs do not count; ``3 (6 runs)`` where a seed has several, by which it counts once."""
    runs = len(row.arm.runs)
    if row.sample and row.sample.n != runs:
        lost = f" of {runs + len(row.arm.failed)}" if row.arm.failed else ""
        return f"{row.sample.n} ({runs}{lost} runs)"
    return f"{runs} of {runs + len(row.arm.failed)}" if row.arm.failed else str(runs)


def _places(comparison: Comparison) -> int:
    """By the smallest standard deviation, half interval or difference in the table, so that none is rounded away."""
    rows = comparison.rows
    spreads = [row.sample.std for row in rows if row.sample and row.sample.std]
    spreads += [(d.high - d.low) / 2 for row in rows if (d := row.difference) and d.high > d.low]
    differences = [abs(row.compared.mean) for row in rows if row.compared and row.compared.mean]
    largest = max((abs(row.sample.mean) for row in rows if row.sample), default=0.0)
    # Six digits of the value are as many as a loss has after a few thousand tokens of evaluation.
    least = largest * 1e-6
    places = decimals(max(min(spreads), least) if spreads else None, largest)
    return max(places, decimals(max(min(differences), least), largest)) if differences else places


def _gb(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
