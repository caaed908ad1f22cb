"""The rows of a comparison: each arm's numbers, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmxexp.compare.arms import Arm
from lmxexp.compare.axes import Axis
from lmxexp.compare.comparable import why_not_comparable
from lmxexp.compare.mismatch import Mismatch, is_judged, mismatch
from lmxexp.compare.outcomes import how_failed
from lmxexp.compare.pairs import ONE_SEED, Compared, Values, by_seed, compare_arms
from lmxexp.compare.read import BUDGETS, Run
from lmxexp.compare.statistics import ALPHA, Difference, Sample, holm, sample, seeds_needed
from lmxexp.compare.verdict import Verdict, judge


@dataclass(frozen=True)
class Row:
    """One arm's numbers. Those against the baseline are None in the baseline's own row."""

    arm: Arm
    values: dict[Run, float]
    """The metric of each run."""
    sample: Sample | None
    """n, mean, standard deviation, interval, over seeds; None where no run ended well."""
    compared: Compared | None
    p_holm: float | None
    verdict: Verdict | None
    seeds_needed: int | None
    """To see the observed difference with a power of 80 %, after Holm's correction; None: unknown, or more than a
    million."""
    seeds_for_effect: int | None
    """The same for the difference that the user asked about."""
    mismatch: Mismatch | None
    costs: dict[str, float | None]
    """Means over the runs: ``params``, ``flops_per_token``, ``tokens_per_s``, ``peak_gb``, and the budgets."""

    @property
    def difference(self) -> Difference | None:
        return self.compared.difference if self.compared else None

    @property
    def p(self) -> float | None:
        """Of this difference alone."""
        return self.difference.p if self.difference else None


@dataclass(frozen=True)
class Judge:
    """What arms are judged by."""

    metric: str
    higher: bool
    """Whether more of the metric is better."""
    budget: str
    sensitivity: float | None = None
    effect: float | None = None


def rows_of(arms: Sequence[tuple[Arm, Values]], axes: Sequence[Axis], by: Judge) -> list[Row]:
    """A row for each arm; the first is the baseline.

    Args:
        arms: with the values of the metric.
        axes: what differs inside arms and makes pairs.
        by: what is compared.
    """
    base, base_values = arms[0]
    compared = [_compared(values, base_values, axes, by.metric) for _, values in arms[1:]]
    tested = [i for i, c in enumerate(compared) if c and c.difference]
    ps = [c.difference.p for c in compared if c and c.difference]
    p_holm = dict(zip(tested, holm(ps), strict=True))
    rows = [_row(base, base_values, axes)]
    for i, (arm, values) in enumerate(arms[1:]):
        row = replace(_row(arm, values, axes), compared=compared[i])
        if row.compared:
            unequal = mismatch(arm, base, by.budget, by.metric, higher=by.higher, sensitivity=by.sensitivity)
            row = replace(row, mismatch=unequal, p_holm=p_holm.get(i))
        if row.difference:
            level = ALPHA / len(tested)
            wanted = seeds_needed(row.difference, by.effect, level) if by.effect else None
            row = replace(row, seeds_needed=seeds_needed(row.difference, None, level), seeds_for_effect=wanted)
        rows.append(replace(row, verdict=_verdict(row, base, len(tested), by)))
    return rows


def _row(arm: Arm, values: Values, axes: Sequence[Axis]) -> Row:
    seen = sample(by_seed(values, axes)) if values else None
    return Row(arm, dict(values), seen, None, None, None, None, None, None, _costs(arm))


def _compared(values: Values, base: Values, axes: Sequence[Axis], metric: str) -> Compared | None:
    """The difference of two arms; None where one has no values."""
    if not values or not base:
        return None
    compared = compare_arms(values, base, axes)
    if compared.difference and compared.difference.how == "paired":  # which is by data too
        return compared
    why = why_not_comparable([*values, *base], metric)
    return Compared(None, compared.mean, why) if why else compared


def _verdict(row: Row, base: Arm, n_arms: int, by: Judge) -> Verdict:
    of_base = how_failed(base)
    failures = "; ".join(filter(None, (how_failed(row.arm), f"baseline: {of_base}" if of_base else "")))
    if row.compared is None:
        return Verdict("no result", "" if failures else _not_ended(row.arm), failures)
    d, compared = row.difference, row.compared
    if d is None or row.p_holm is None:
        word = "not distinguishable" if compared.why_not == ONE_SEED else "not comparable"
        return Verdict(word, compared.why_not, failures)
    if compared.unvarying and d.mean and is_judged(by.metric):
        return Verdict("not distinguishable", "the seeds change nothing: one observation each", failures)
    judged = row.mismatch if is_judged(by.metric) else None
    return judge(d, row.p_holm, judged, higher=by.higher, n_arms=n_arms, failures=failures)


def _not_ended(arm: Arm) -> str:
    statuses = {run.status for run in arm.failed}
    return {frozenset(["pruned"]): "stopped early", frozenset(["waiting"]): "not started"}.get(
        frozenset(statuses), "no run has ended"
    )


def _costs(arm: Arm) -> dict[str, float | None]:
    def mean(values: list[Any]) -> float | None:
        numbers = [v for v in values if isinstance(v, int | float)]
        return sum(numbers) / len(numbers) if numbers else None

    costs = {kind: mean([run.budget(kind) for run in arm.runs]) for kind in BUDGETS}
    return costs | {
        "flops_per_token": mean([run.record.get("flops_per_token") for run in arm.runs]),
        "tokens_per_s": mean([run.summary.get("perf/tokens_per_s") for run in arm.runs]),
        "peak_gb": costs["memory"],
    }
