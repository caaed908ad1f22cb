"""Tuned arms: the loss of each against the setting that was tuned, and whether the bracket was wide enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmxexp.compare import measure
from lmxexp.compare.arms import value_of
from lmxexp.compare.axes import ABSENT
from lmxexp.compare.read import Run

_MORE = 2
"""Values that a bracket is widened by."""


@dataclass(frozen=True)
class Trial:
    """One arm at one value of the setting."""

    value: float
    scores: dict[Any, float]
    """Of the runs that ended well, by their seeds."""
    diverged: int = 0
    unfinished: int = 0
    """Failed, killed, stopped, pruned, or not run yet."""

    @property
    def n(self) -> int:
        return len(self.scores)

    @property
    def mean(self) -> float:
        """NaN where no run ended well; of some seeds alone where others did not: see `complete`."""
        return statistics.fmean(self.scores.values()) if self.scores else math.nan

    @property
    def low(self) -> float:
        return min(self.scores.values(), default=math.nan)

    @property
    def high(self) -> float:
        return max(self.scores.values(), default=math.nan)

    @property
    def complete(self) -> bool:
        """Whether every seed ended well: the mean of the survivors alone would make a value that diverges look good."""
        return bool(self.scores) and not self.diverged and not self.unfinished


@dataclass(frozen=True)
class TunedArm:
    """One arm at all of its values, ascending."""

    label: str
    trials: list[Trial]
    sign: int
    """1 where less is better, -1 where more is."""

    @property
    def values(self) -> list[float]:
        return [trial.value for trial in self.trials]

    @property
    def mean(self) -> list[float]:
        return [trial.mean for trial in self.trials]

    @property
    def low(self) -> list[float]:
        return [trial.low for trial in self.trials]

    @property
    def high(self) -> list[float]:
        return [trial.high for trial in self.trials]

    @property
    def diverged(self) -> list[int]:
        return [trial.diverged for trial in self.trials]

    @property
    def optimum(self) -> Trial | None:
        """The complete trial of the best mean, of those over the most seeds; the smallest value of equals. None if none
        is complete."""
        return self._best([trial for trial in self.trials if trial.complete])

    @property
    def representative(self) -> Trial | None:
        """The trial that stands for the arm where arms are compared: its optimum; where no value has all of its seeds,
        the best of those with the most survivors. None if no run ended well."""
        return self.optimum or self._best([trial for trial in self.trials if trial.scores])

    @property
    def edge(self) -> Literal["lowest", "highest", "only"] | None:
        """Where in the bracket the optimum sits, if it is an end. Values that diverged are part of the bracket."""
        best = self.optimum
        if best is None:
            return None
        if len(self.trials) == 1:
            return "only"
        return "lowest" if best is self.trials[0] else "highest" if best is self.trials[-1] else None

    @property
    def to_add(self) -> list[float]:
        """Values that would widen the bracket beyond the optimum, spaced as its end is, three digits."""
        values = self.values
        if self.edge == "lowest":
            return sorted(_rounded(values[0] * (values[0] / values[1]) ** i) for i in range(1, _MORE + 1))
        if self.edge == "highest":
            return [_rounded(values[-1] * (values[-1] / values[-2]) ** i) for i in range(1, _MORE + 1)]
        return []

    @property
    def estimate(self) -> float | None:
        """Where a parabola in the logarithm of the setting, through the optimum and its two neighbours, has its vertex;
        None where they do not bracket it. An estimate: no run was made there."""
        best = self.optimum
        if best is None or self.edge is not None:
            return None
        i = self.trials.index(best)
        around = self.trials[i - 1 : i + 2]
        if not all(trial.complete for trial in around):
            return None
        x, y = [math.log(trial.value) for trial in around], [self.sign * trial.mean for trial in around]
        left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
        curvature = (right - left) / (x[2] - x[0])
        if curvature <= 0:
            return None
        return math.exp((x[0] + x[1]) / 2 - left / (2 * curvature))

    def _best(self, trials: Sequence[Trial]) -> Trial | None:
        most = max((trial.n for trial in trials), default=0)
        return min((t for t in trials if t.n == most), key=lambda trial: self.sign * trial.mean, default=None)


@dataclass(frozen=True)
class Tuning:
    """All arms over one setting.

    The best of k trials is better than the arm would score again at that value, because the luckiest is chosen. Where
    all arms have the same k values and seeds, as ``tune=…`` gives them, that favours none by construction; a number of
    its own needs fresh seeds at the optimum.
    """

    key: str
    metric: str
    arms: list[TunedArm]

    @property
    def winners(self) -> dict[float, str]:
        """The arm of the best mean at each value that all arms share, ``a and b`` where two are equal. An arm with a
        seed that diverged loses there; a value at which some arm is not finished, or all diverged, is left out."""
        found: dict[float, str] = {}
        shared = set.intersection(*(set(arm.values) for arm in self.arms)) if self.arms else set()
        for value in sorted(shared):
            at = {arm.label: arm.trials[arm.values.index(value)] for arm in self.arms}
            complete = {label: trial for label, trial in at.items() if trial.complete}
            if complete and all(trial.complete or trial.diverged for trial in at.values()):
                found[value] = self._best({label: trial.mean for label, trial in complete.items()})
        return found

    @property
    def winner(self) -> str | None:
        """The arm of the best mean, each at its own optimum; None unless every arm has one."""
        best = {arm.label: arm.optimum for arm in self.arms}
        means = {label: trial.mean for label, trial in best.items() if trial is not None}
        return self._best(means) if means and len(means) == len(best) else None

    @property
    def winner_changes(self) -> bool:
        """Whether what wins depends on the value."""
        return len(set(self.winners.values())) > 1

    def _best(self, means: Mapping[str, float]) -> str:
        sign = self.arms[0].sign
        best = min(sign * mean for mean in means.values())
        return " and ".join(label for label, mean in means.items() if sign * mean == best)


def analyse(
    groups: Mapping[str, Sequence[Run]], key: str, metric: str = "eval/loss", higher_is_better: bool | None = None
) -> Tuning:
    """How each arm's metric depends on the setting that was tuned.

    Args:
        groups: the runs of each arm at all values of the setting, those that failed among them. `Arm.repeated` are not.
        key: what was tuned, short form or long.
        metric: as `lmxexp.compare.measure.value` takes it.
        higher_is_better: None: by the metric's name.

    Raises:
        ConfigError: a run in which the setting is no positive number.
    """
    higher = measure.higher_is_better(metric) if higher_is_better is None else higher_is_better
    arms = [TunedArm(label, _trials(runs, key, metric), -1 if higher else 1) for label, runs in groups.items()]
    return Tuning(key, metric, arms)


def setting(run: Run, key: str) -> float | None:
    """The value of a tuned setting in a run; None of one that failed before its configuration was written, and whose
    command does not say it.

    Raises:
        ConfigError: it is no positive number.
    """
    value = value_of(key)(run)
    if value is ABSENT and not run.config:
        return None
    try:
        number = math.nan if value is ABSENT or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        from lmxexp.cli.errors import refuse

        what = "does not have it" if value is ABSENT else f"has {value}: leave it out, and each value makes an arm"
        refuse(f"--tune {key}: a curve against it needs a positive number, and {run.name} {what}")
    return number


def _trials(runs: Sequence[Run], key: str, metric: str) -> list[Trial]:
    by_value: dict[float, dict[Any, list[Run]]] = {}
    for run in runs:
        value = setting(run, key)
        if value is not None:
            by_value.setdefault(value, {}).setdefault((run.seed, run.data_seed), []).append(run)
    return [_trial(value, by_value[value], metric) for value in sorted(by_value)]


def _trial(value: float, by_seed: Mapping[Any, Sequence[Run]], metric: str) -> Trial:
    """A seed counts once: by the mean of its runs that ended well, where arms differ inside as well."""
    scores: dict[Any, float] = {}
    diverged = unfinished = 0
    for seeds, runs in by_seed.items():
        found = [measure.value(run, metric) for run in runs if run.status == "ok"]
        finite = [score for score in found if score is not None and math.isfinite(score)]
        if finite:
            scores[seeds] = statistics.fmean(finite)
        elif any(score is not None for score in found) or any(run.status == "diverged" for run in runs):
            diverged += 1
        else:
            unfinished += 1
    return Trial(value, scores, diverged, unfinished)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
