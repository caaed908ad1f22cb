"""The one number of a run that is compared, and whether more of it is better."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from lmxexp.compare.arms import Arm
from lmxexp.compare.read import Run

HIGHER = ("eval/accuracy", "perf/tokens_per_s", "perf/mfu")
"""Metrics of which more is better, beside all accuracies and what callback ``speed`` measures in tokens a second. Of
all others, less is, unless the user says otherwise."""
_MEDIAN = ("perf/mfu", "perf/step_ms")
"""Not in ``summary.json``, and of a single step too noisy: their median over the run, as it has of the speed."""


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better."""
    return metric in HIGHER or metric.endswith("accuracy") or "_tokens_per_s/" in metric


def value(run: Run, metric: str) -> float | None:
    """A metric of a run: the last that was logged, of ``perf/*`` the median; None if it never was."""
    found = run.summary.get(metric)
    if found is None and metric in _MEDIAN:
        values = [line[metric] for line in run.lines(metric, at_most=1000)]
        return statistics.median(values) if values else None
    if found is None:
        lines = run.lines(metric, at_most=1)  # the last
        found = lines[-1][metric] if lines else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def measured(arm: Arm, metric: str) -> tuple[Arm, dict[Run, float]]:
    """The values of an arm's runs. Runs that have none, or no finite one, are moved to those that failed."""
    values: dict[Run, float] = {}
    failed = list(arm.failed)
    for run in arm.runs:
        number = value(run, metric)
        if number is not None and math.isfinite(number):
            values[run] = number
        elif number is None:
            failed.append(dataclasses.replace(run, status="failed", error=f"has no {metric}"))
        else:
            failed.append(dataclasses.replace(run, status="diverged", error=f"{metric} is {number}"))
    return dataclasses.replace(arm, runs=list(values), failed=failed), values


def check_metric(runs: Sequence[Run], metric: str) -> list[str]:
    """Warnings about runs that lack a metric.

    Raises:
        ConfigError: no run that ended well has it.
    """
    good = [run for run in runs if run.status == "ok"]
    without = [run for run in good if value(run, metric) is None]
    if not without:
        return []
    if len(without) == len(good):
        from lmxexp.cli.errors import did_you_mean, refuse

        known = sorted({key for run in good[:10] for key in _known(run)})
        hint = did_you_mean(metric, known) or (f"; there are {', '.join(known)}" if known else "")
        refuse(f"--metric {metric}: no run has it{hint}")
    names = ", ".join(run.name for run in without[:5]) + (", …" if len(without) > 5 else "")
    return [f"{len(without)} of {len(good)} runs have no {metric} and do not count: {names}"]


def _known(run: Run) -> list[str]:
    last: dict[str, Any] = {}
    for line in run.lines(at_most=100):
        last |= line
    numbers = {k for k, v in (run.summary | last).items() if "/" in k and isinstance(v, int | float)}
    return sorted(numbers)
