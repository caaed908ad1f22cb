"""What an unequal budget alone could explain.

Of two arms, the one with the larger budget has an advantage that is none of its design. Its size is estimated as
``|log(1 + r)| * sensitivity``: ``r`` is the relative mismatch, the arm's budget over the baseline's minus 1, and the
sensitivity is the change of the metric per e-fold of the budget.

Where the sensitivity comes from:

- tokens, flops, steps, time: measured. The slope of the metric against ``log(tokens)`` over the last half of the
  evaluations, and where that half has fewer than 3, of ``train/loss`` over the last half of what was logged; the mean
  over an arm's runs, and the larger of the two arms'. With a schedule that decays the learning rate, the slope at the
  end holds the gain of the decay too and is too large: a verdict is withheld too often rather than too seldom.
- params: the larger of that slope and 0.076 times the metric. Kaplan et al. find ``L ~ N^-0.076``, so an e-fold of
  parameters changes the loss by 7.6 %. Of metrics that are no losses, the slope alone.
- memory: unknown. A mismatch beyond 1 % prevents a verdict.
- any: what the user gives as ``--sensitivity``.

Only a mismatch in favour of the better arm counts: who wins with less has won. ``perf/*``, ``mem/*`` and
``speed/*`` are costs themselves and are not judged by this rule.

Source:
    J. Kaplan et al., "Scaling Laws for Neural Language Models", 2020, https://arxiv.org/abs/2001.08361, table 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmxexp.compare.arms import Arm
from lmxexp.compare.read import Run

TOLERANCE = 0.01
"""The relative mismatch that is let pass where nothing is known about what it does."""
_NOTHING = 1e-9
"""A relative mismatch that is the rounding of a mean: no curves are read for it."""
KAPLAN_ALPHA_N = 0.076
_LINES = 256
"""Of a run's training losses, as many as the slope is fitted to: reading all of 2,000 costs ten times as much."""
_RUNS = 5
"""Of an arm, as many curves as the slope is averaged over."""


@dataclass(frozen=True)
class Mismatch:
    """How unequal an arm's budget is to the baseline's, and what that could explain."""

    kind: str
    relative: float
    """The arm's budget over the baseline's, minus 1."""
    sensitivity: float | None
    """Change of the metric, for the better, per e-fold of the budget; None: unknown."""
    source: str
    """Where the sensitivity comes from."""

    @property
    def explains(self) -> float | None:
        """The difference of the metric that it could explain, at least 0; None: unknown, and beyond the tolerance."""
        if self.sensitivity is None:
            return None if abs(self.relative) > TOLERANCE else 0.0
        return abs(math.log1p(self.relative)) * self.sensitivity

    @property
    def text(self) -> str:
        """``+1.3 % params``."""
        return f"{self.relative * 100:+.2g} % {self.kind}"


def mismatch(
    arm: Arm, baseline: Arm, kind: str, metric: str, *, higher: bool, sensitivity: float | None = None
) -> Mismatch | None:
    """The mismatch of an arm to the baseline, by the means over their runs; None where a budget is not known.

    Args:
        higher: whether more of the metric is better.
        sensitivity: the user's, instead of an estimate.
    """
    used, base = _mean_budget(arm, kind), _mean_budget(baseline, kind)
    if used is None or not base:
        return None
    relative = used / base - 1
    if sensitivity is not None:
        return Mismatch(kind, relative, sensitivity, "given")
    if kind == "memory" or abs(relative) < _NOTHING:
        return Mismatch(kind, relative, None, "unknown" if kind == "memory" else "not needed")
    slopes = [gain for a in (arm, baseline) if (gain := _gain(a.runs[:_RUNS], metric, higher)) is not None]
    measured = max(slopes, default=None)
    if kind != "params" or not is_loss(metric):
        return Mismatch(kind, relative, measured, "unknown" if measured is None else "measured on the curves")
    values = [v for run in baseline.runs if isinstance(v := run.summary.get(metric), int | float)]
    assumed = KAPLAN_ALPHA_N * sum(values) / len(values) if values else None
    if assumed is None or (measured is not None and measured > assumed):
        return Mismatch(kind, relative, measured, "unknown" if measured is None else "measured on the curves")
    return Mismatch(kind, relative, assumed, "0.076 of the loss per e-fold of parameters (Kaplan et al. 2020)")


def is_loss(metric: str) -> bool:
    """Whether a metric is a cross-entropy, in whatever unit."""
    return metric.endswith(("/loss", "/bpb"))


def is_judged(metric: str) -> bool:
    """Whether budgets bear on a metric in a way that this rule knows."""
    return not metric.startswith(("perf/", "mem/", "speed/"))


def slope(run: Run, metric: str) -> float | None:
    """Change of the metric per e-fold of tokens at the end of a run; None where too little was logged.

    From the last half of the evaluations; where that has fewer than 3, from the last half of ``train/loss``, for
    losses (of bits per byte, in its unit).
    """
    evaluated = _last_half(run, metric.removeprefix("best/"))
    if len(evaluated) >= 3:
        return _fit(evaluated)
    if not is_loss(metric):
        return None
    trained = _last_half(run, "train/loss")
    if len(trained) < 3:
        return None
    found = _fit(trained)
    if found is None or not metric.endswith("/bpb"):
        return found
    bpb, nats = run.summary.get("eval/bpb"), run.summary.get("eval/loss")
    return found * bpb / nats if bpb and nats else None


def _gain(runs: Sequence[Run], metric: str, higher: bool) -> float | None:
    """The mean improvement per e-fold of tokens; 0 where the metric grows worse at the end."""
    slopes = [s for run in runs if (s := slope(run, metric)) is not None]
    if not slopes:
        return None
    mean = sum(slopes) / len(slopes)
    return max(0.0, mean if higher else -mean)


def _last_half(run: Run, metric: str) -> list[tuple[float, float]]:
    """``(log tokens, value)`` of the last half of what was logged."""
    lines = run.lines(metric, "tokens", at_most=_LINES)
    points = [(line["tokens"], line[metric]) for line in lines if line["tokens"] > 0 and math.isfinite(line[metric])]
    return [(math.log(tokens), v) for tokens, v in points[len(points) // 2 :]]


def _fit(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of the least squares line."""
    x, y = zip(*points, strict=True)
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - mx) ** 2 for a in x)
    return math.fsum((a - mx) * (b - my) for a, b in points) / spread if spread > 0 else None


def _mean_budget(arm: Arm, kind: str) -> float | None:
    values = [v for run in arm.runs if (v := run.budget(kind)) is not None]
    return math.fsum(values) / len(values) if values else None
