"""What a comparison says, in sentences."""

from __future__ import annotations

from lmxexp.compare.cells import interval, number
from lmxexp.compare.comparison import Comparison
from lmxexp.compare.digits import says_chance
from lmxexp.compare.mismatch import is_judged
from lmxexp.compare.pairs import ONE_SEED
from lmxexp.compare.rows import Row

_POWER = "with a power of 80 %"


def sentences(comparison: Comparison) -> list[str]:
    """The verdict on each arm; then how it was reached."""
    c = comparison
    said = [_on_arm(c, row) for row in c.rows[1:]]
    if len(c.rows) == 1:
        said.append(f"{c.baseline.label} is the only arm: there is nothing to compare it with.")
    return [*said, *_method(c)]


def _on_arm(c: Comparison, row: Row) -> str:
    assert row.verdict is not None
    arm, base, word = row.arm.label, c.baseline.label, row.verdict.word
    relation = {
        "better": f"is better than {base}",
        "worse": f"is worse than {base}",
        "not distinguishable": f"is not distinguishable from {base}",
        "not comparable": f"cannot be compared with {base}",
        "no result": "has no result",
    }[word]
    reason = f" ({row.verdict.reason})" if row.verdict.reason else ""
    parts = [f"{arm} {relation}{reason}"]
    if row.compared is not None:
        parts.append(_numbers(c, row))
    text = ": ".join(parts) + "."
    return " ".join(filter(None, (text, _left_out(row), _seeds(c, row), _mismatch(c, row), _failures(row))))


def _numbers(c: Comparison, row: Row) -> str:
    assert row.compared is not None
    d = row.compared.difference
    text = f"{c.metric} differs by {number(c, row.compared.mean, signed=True)}"
    if d is None:
        return text
    digits = len(number(c, 0.0).partition(".")[2])
    n = f"{d.n[0]} pairs" if d.how == "paired" else f"{d.n[0]} and {d.n[1]} runs, unpaired"
    test = "paired t" if d.how == "paired" else "Welch"
    return f"{text} {interval(d.low, d.high, digits, signed=True)} ({test}, {n}, {says_chance(row.p_holm)})"


def _left_out(row: Row) -> str:
    out = row.compared.left_out if row.compared else ()
    if not out:
        return ""
    seeds = ", ".join(dict.fromkeys(str(run.seed) for run in out))
    return f"{len(out)} run{'s' if len(out) > 1 else ''} without a partner (seed {seeds}) left out of the difference."


def _seeds(c: Comparison, row: Row) -> str:
    if row.difference is None:
        return "More seeds are needed: two at least." if row.compared and row.compared.why_not == ONE_SEED else ""
    said = []
    if row.verdict is not None and row.verdict.word == "not distinguishable" and row.difference.mean:
        n = row.seeds_needed
        if n is None:
            said.append("No number of seeds up to a million would show a difference of this size.")
        elif n > max(row.difference.n):
            said.append(f"About {n:,} seeds an arm would show a difference of this size {_POWER}.")
    if c.effect:
        n = row.seeds_for_effect
        many = "More than a million" if n is None else f"About {n:,}"
        said.append(f"{many} seeds an arm would show a difference of {c.effect:g} {_POWER}.")
    return " ".join(said)


def _mismatch(c: Comparison, row: Row) -> str:
    unequal = row.mismatch
    if unequal is None or row.compared is None or not is_judged(c.metric) or abs(unequal.relative) < 5e-7:
        return ""
    better = (row.compared.mean > 0) == c.higher_is_better
    if (unequal.relative > 0) != better:
        return f"It has {unequal.text}, which does not favour the one that is ahead."
    explains = unequal.explains
    if explains is None or unequal.sensitivity is None:
        return f"It has {unequal.text}; what that explains is not known."
    return f"It has {unequal.text}, which could explain {number(c, explains)} of it: {unequal.source}."


def _failures(row: Row) -> str:
    assert row.verdict is not None
    text = row.verdict.failures
    return f"{text[0].upper()}{text[1:]}: what is said rests on the others." if text else ""


def _method(c: Comparison) -> list[str]:
    tests = {row.difference.how for row in c.rows if row.difference}
    if not tests:
        return []
    n = sum(row.difference is not None for row in c.rows)
    held = {
        "paired": "paired by seed and data",
        "Welch": "Welch's t where no two seeds are shared",
    }
    how = " and ".join(held[t] for t in ("paired", "Welch") if t in tests)
    holm = f" p values are Holm's over {n} arms; numbers of seeds hold for the strictest of its steps." if n > 1 else ""
    return [f"Differences are arm minus baseline, {how}; intervals are 95 % t intervals of each alone.{holm}"]
