"""Arms against a baseline: what is compared, and what has to be said beside the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmxexp.compare import inside
from lmxexp.compare.arms import Arm, group, hidden_axes
from lmxexp.compare.best import best_of_each, tuned_key
from lmxexp.compare.comparable import choose_metric, same_surroundings
from lmxexp.compare.measure import check_metric, higher_is_better, measured
from lmxexp.compare.outcomes import why
from lmxexp.compare.pairs import Values
from lmxexp.compare.read import BUDGETS, Run, Sweep, find_runs, read_sweep
from lmxexp.compare.rows import Judge, Row, rows_of
from lmxexp.compare.tuned import Tuning, analyse
from lmxexp.compare.unjudged import equal_arms, unjudged_budgets, unvarying

_MOST_REASONS = 20


@dataclass(frozen=True)
class Comparison:
    """All that the table, the plots and the files show."""

    metric: str
    higher_is_better: bool
    budget: str
    """The kind of budget whose mismatch is judged."""
    rows: list[Row]
    """The baseline's first."""
    failed: list[Run]
    """Runs that do not count, each with its reason: in `Run.status` and `Run.error`."""
    warnings: list[str]
    """What the reader has to know before believing the table."""
    runs: list[Run]
    """All that were found."""
    sweeps: list[Sweep]
    effect: float | None = None
    tuning: Tuning | None = None
    """How each arm depends on the setting that it was tuned in."""

    @property
    def arms(self) -> list[Arm]:
        """The baseline first."""
        return [row.arm for row in self.rows]

    @property
    def baseline(self) -> Arm:
        return self.rows[0].arm


def compare(
    paths: Sequence[Path | str],
    *,
    by: Sequence[str] | None = None,
    metric: str | None = None,
    baseline: str | None = None,
    budget: str | None = None,
    sensitivity: float | None = None,
    effect: float | None = None,
    higher: bool | None = None,
    tune: str | None = None,
) -> Comparison:
    """Compare the runs in directories.

    Args:
        paths: of runs, sweeps or folders above them.
        by: choices or dotted keys that make arms; None: everything but the seed.
        metric: None: ``eval/loss``, or ``eval/bpb`` where the tokenizers differ.
        baseline: an arm's label, or words that only it has; None: the first arm.
        budget: kind whose mismatch is judged; None: the sweep's ``match``, else tokens.
        sensitivity: change of the metric per e-fold of the budget; None: see `lmxexp.compare.mismatch`.
        effect: also say how many seeds would show a difference of this size.
        higher: whether more of the metric is better; None: known by its name.
        tune: a key in which each arm is represented by its best value; None: that of the sweep's ``tune``.

    Raises:
        ConfigError: no runs there, or an argument that fits none of them.
    """
    return compare_runs(
        find_runs(paths), by=by, metric=metric, baseline=baseline, budget=budget, sensitivity=sensitivity,
        effect=effect, higher=higher, tune=tune,
    )  # fmt: skip


def compare_runs(
    runs: Sequence[Run],
    *,
    by: Sequence[str] | None = None,
    metric: str | None = None,
    baseline: str | None = None,
    budget: str | None = None,
    sensitivity: float | None = None,
    effect: float | None = None,
    higher: bool | None = None,
    tune: str | None = None,
) -> Comparison:
    """`compare` of runs that have been read."""
    sweeps = [s for d in dict.fromkeys(run.sweep_dir for run in runs if run.sweep_dir) if (s := read_sweep(d))]
    _check(runs, budget, sensitivity, effect)
    good = [run for run in runs if run.status == "ok"]
    metric, said = choose_metric(good, metric)
    warnings = [*check_metric(runs, metric), *said, *same_surroundings(good)]
    higher = higher_is_better(metric) if higher is None else higher
    key = tuned_key(runs, sweeps, tune)
    ignore = (key,) if key else ()

    arms: list[tuple[Arm, Values]] = [measured(arm, metric) for arm in group(runs, by, ignore)]
    failed = [run for arm, _ in arms for run in arm.failed]
    tuning = None
    if key:
        tuning = analyse({arm.label: [*arm.runs, *arm.failed] for arm, _ in arms}, key, metric, higher)
        arms = best_of_each(arms, tuning)
    arms, more = _baseline_first(arms, baseline)
    axes = hidden_axes(runs, by, ignore)
    counted = [arm.runs for arm, _ in arms]
    warnings += [*more, *inside.warnings(axes, counted), *_repeated(arms)]

    for sweep in sweeps:
        if n := len(sweep.forgotten):
            warnings.append(
                f"{sweep.name}: {n} point{'s' * (n != 1)} of an earlier command, not started, left out: that command "
                "again runs them"
            )
    kinds = sorted({match["kind"] for sweep in sweeps if (match := sweep.content.get("match"))})
    if budget is None and len(kinds) > 1:
        warnings.append(f"the sweeps are matched in {' and '.join(kinds)}: tokens are judged; --budget judges another")
    judge = Judge(metric, higher, budget or (kinds[0] if len(kinds) == 1 else "tokens"), sensitivity, effect)
    rows = rows_of(arms, [axis for axis in axes if inside.varies(axis, counted)], judge)
    warnings += unvarying(rows, metric) + equal_arms(rows)
    warnings += unjudged_budgets(rows, metric, judge.budget, higher=higher)
    return Comparison(metric, higher, judge.budget, rows, failed, warnings, list(runs), sweeps, effect, tuning)


def _baseline_first(arms: list[tuple[Arm, Values]], asked: str | None) -> tuple[list[tuple[Arm, Values]], list[str]]:
    if asked is None:
        chosen = next((i for i, (_, values) in enumerate(arms) if values), 0)
        said = [f"{arms[0][0].label} has no result: {arms[chosen][0].label} is the baseline"] if chosen else []
    else:
        chosen, said = _named(asked, [arm.label for arm, _ in arms]), []
    return [arms[chosen], *arms[:chosen], *arms[chosen + 1 :]], said


def _named(asked: str, labels: list[str]) -> int:
    """The arm of that label, or the only one whose words hold those asked for."""
    exact = [i for i, label in enumerate(labels) if label == asked]
    some = [i for i, label in enumerate(labels) if set(asked.split()) <= {*label.split()}]
    values = [i for i, label in enumerate(labels) if asked in [word.partition("=")[2] for word in label.split()]]
    found = exact or some or values
    if len(found) != 1:
        from lmxexp.cli.errors import refuse

        what = "fits several arms" if found else "is no arm"
        refuse(f"--baseline {asked!r} {what}; the arms are: {'; '.join(labels[i] for i in found) or '; '.join(labels)}")
    return found[0]


def _repeated(arms: Sequence[tuple[Arm, Values]]) -> list[str]:
    said = []
    for arm, _ in arms:
        if arm.repeated:
            seeds = ", ".join(str(s) for s in sorted({run.seed for run in arm.repeated if run.seed is not None}))
            said.append(
                f"{arm.label}: {len(arm.repeated)} older run{'s' if len(arm.repeated) > 1 else ''} of seed {seeds} "
                f"beside a newer one of the same design: only the newest counts"
            )
    return said


def _nothing(runs: Sequence[Run]) -> str:
    """That no run has ended well, and how they stand."""
    if len(runs) == 1:
        return f"{runs[0].path} is the only run, and there is nothing to compare: {why(runs[0])}"
    reasons = [f"  {run.name}: {why(run)}" for run in runs[:_MOST_REASONS]]
    more = [f"  and {len(runs) - _MOST_REASONS} more"] if len(runs) > _MOST_REASONS else []
    listed = "\n".join([*reasons, *more])
    return f"none of {len(runs)} runs has ended well, so there is nothing to compare yet:\n{listed}"


def _check(runs: Sequence[Run], budget: str | None, sensitivity: float | None, effect: float | None) -> None:
    problems = []
    if budget is not None and budget not in BUDGETS:
        problems.append(f"--budget {budget} is none of {', '.join(BUDGETS)}")
    if sensitivity is not None and not 0 <= sensitivity < math.inf:
        problems.append(f"--sensitivity {sensitivity:g} must be 0 or more: the metric's gain per e-fold of the budget")
    if effect is not None and not 0 < effect < math.inf:
        problems.append(f"--effect {effect:g} must be a positive difference of the metric, such as 0.01")
    if not any(run.status == "ok" for run in runs):
        problems.append(_nothing(runs))
    if problems:
        from lmxexp.cli.errors import refuse

        refuse(problems)
