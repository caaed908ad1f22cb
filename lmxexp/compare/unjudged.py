"""What no number of a comparison shows, and its reader has to know: budgets that differ and were not judged, arms that
compute the same, seeds that change nothing."""

from __future__ import annotations

from collections.abc import Sequence

from lmxexp.compare.digits import percent
from lmxexp.compare.mismatch import TOLERANCE, is_judged
from lmxexp.compare.rows import Row

_BUDGETS = ("params", "flops", "tokens")
"""Of which more is an advantage. Time and memory are costs, in columns of their own."""


def unjudged_budgets(rows: Sequence[Row], metric: str, budget: str, *, higher: bool) -> list[str]:
    """A warning where an arm is called better than another that had less of a budget which was not judged.

    Args:
        rows: the baseline's first.
        budget: the kind that was judged.
        higher: whether more of the metric is better.
    """
    if not is_judged(metric):
        return []
    told = []
    for kind in _BUDGETS:
        worst: tuple[float, str] = (0.0, "")
        for row in rows[1:] if kind != budget else []:
            used, base = row.costs[kind], rows[0].costs[kind]
            if not used or not base or row.verdict is None or row.compared is None:
                continue
            relative, better = used / base - 1, (row.compared.mean > 0) == higher
            favours = row.verdict.word in ("better", "worse") and (relative > 0) == better
            if favours and abs(relative) > max(TOLERANCE, abs(worst[0])):
                worst = (relative, row.arm.label)
        if worst[0]:
            told.append(f"{kind} ({worst[1]}: {percent(worst[0])})")
    if not told:
        return []
    return [f"what is ahead has more of what was not judged: {', '.join(told)}; --budget judges it, match=… equals it"]


def equal_arms(rows: Sequence[Row]) -> list[str]:
    """A warning about arms whose pairs of runs all have the same value, which no two designs have."""
    return [
        f"{row.arm.label} and {rows[0].arm.label} have exactly the same value at every seed: they compute the same, "
        f"as with a window longer than the sequence"
        for row in rows[1:]
        if (d := row.difference) and d.how == "paired" and d.mean == 0 and d.std == (0.0, 0.0)
    ]


def unvarying(rows: Sequence[Row], metric: str) -> list[str]:
    """A warning about arms whose seeds all have the same value."""
    if not is_judged(metric):
        return []
    return [
        f"{row.arm.label}: {metric} is the same for all {row.sample.n} seeds; is seed= used?"
        for row in rows
        if row.sample and row.sample.std == 0
    ]
