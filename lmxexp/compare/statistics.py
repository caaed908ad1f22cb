"""What a few seeds say: intervals, differences, corrections, and how many seeds it would take.

Distributions are SciPy's (``scipy.special``, which is imported in a tenth of the time of ``scipy.stats``). Everything
rests on Student's assumption that the values of an arm, or the differences of its pairs, are normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONFIDENCE = 0.95
ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1_000_000
"""Where the search for a number of seeds ends: nobody trains that many."""
_ROUNDING = 1e-12
"""A spread below this share of the values is the rounding of floats, not of the seeds."""

Alternative = Literal["two-sided", "less", "greater"]


@dataclass(frozen=True)
class Sample:
    """The values of one arm."""

    n: int
    mean: float
    std: float | None
    """Of one value, with n - 1; None for a single one."""
    low: float | None
    """The 95 % t interval of the mean; None for a single value."""
    high: float | None


@dataclass(frozen=True)
class Difference:
    """One arm minus the baseline."""

    how: Literal["paired", "Welch"]
    mean: float
    low: float
    """The 95 % t interval, of this difference alone."""
    high: float
    p: float
    """Two-sided, of this difference alone."""
    df: float
    n: tuple[int, int]
    """The values compared, of the arm and of the baseline; of pairs, both are their number."""
    std: tuple[float, float]
    """Paired: of one pair's difference, twice. Welch: of one value of the arm, of the baseline."""


@dataclass(frozen=True)
class TTest:
    """A mean against a number."""

    t: float
    df: int
    p: float
    low: float
    """The two-sided 95 % interval of the mean."""
    high: float


def sample(values: Sequence[float]) -> Sample:
    """Mean, standard deviation and 95 % t interval of at least one value."""
    n, mean = len(values), _mean(values)
    if n == 1:
        return Sample(1, mean, None, None, None)
    std = _std(values)
    test = one_sample(mean, std, n, 0.0)
    return Sample(n, mean, std, test.low, test.high)


def one_sample(mean: float, std: float, n: int, against: float, alternative: Alternative = "two-sided") -> TTest:
    """Student's t test of a mean, from summary figures alone.

    Args:
        std: of one value, with n - 1.
        alternative: ``less``: that the true mean is below ``against``.

    Raises:
        ValueError: fewer than two values, or a negative deviation.
    """
    if n < 2 or std < 0:
        raise ValueError(f"n={n} and std={std}: a t test needs two values and a deviation that is not negative")
    error = std / math.sqrt(n)
    t = _ratio(mean - against, error)
    half = _t_quantile(n - 1) * error
    return TTest(t, n - 1, _p(t, n - 1, alternative), mean - half, mean + half)


def paired(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Paired t test; the i-th values belong together. At least two pairs."""
    assert len(arm) == len(baseline) >= 2
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    scale = max(map(abs, (*arm, *baseline)))
    n, mean, std = len(differences), _rounded(_mean(differences), scale), _std(differences, scale)
    test = one_sample(mean, std, n, 0.0)
    return Difference("paired", mean, test.low, test.high, test.p, test.df, (n, n), (std, std))


def welch(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Welch's t test, which takes the two variances to be unequal. At least two values each.

    Source:
        B. L. Welch, "The generalization of Student's problem when several different population variances are
        involved", Biometrika 34, 1947; degrees of freedom by Satterthwaite.
    """
    assert len(arm) >= 2
    assert len(baseline) >= 2
    s, n = (_std(arm), _std(baseline)), (len(arm), len(baseline))
    error, df = math.hypot(s[0] / math.sqrt(n[0]), s[1] / math.sqrt(n[1])), _welch_df(s, n)
    mean = _rounded(_mean(arm) - _mean(baseline), max(map(abs, (*arm, *baseline))))
    half = _t_quantile(df) * error
    return Difference("Welch", mean, mean - half, mean + half, _p(_ratio(mean, error), df, "two-sided"), df, n, s)


def holm(ps: Sequence[float]) -> list[float]:
    """P values after Holm's step-down correction: rejecting those up to alpha, the chance of any false rejection among
    all of them stays below alpha, however they depend on each other.

    Source:
        S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def power(difference: Difference, effect: float, n: int, alpha: float = ALPHA) -> float:
    """The probability that ``n`` seeds an arm (pairs, where paired) show a true difference of ``effect`` at the level
    ``alpha``, two-sided, if the spread is the one observed. By the noncentral t distribution."""
    from scipy.special import nctdtr

    s = difference.std
    if difference.how == "paired":
        df, error = n - 1.0, s[0] / math.sqrt(n)
    else:
        df, error = _welch_df(s, (n, n)), math.sqrt((s[0] ** 2 + s[1] ** 2) / n)
    if error == 0:
        return 1.0 if effect else alpha
    shift, limit = abs(effect) / error, _t_quantile(df, alpha)
    # Where a probability is below 1e-13, SciPy's series may end in NaN.
    below, above = (0.0 if math.isnan(p) else p for p in nctdtr(df, shift, [-limit, limit]).tolist())
    return 1 - above + below


def seeds_needed(difference: Difference, effect: float | None = None, alpha: float = ALPHA) -> int | None:
    """How many seeds an arm would show a difference with a power of 80 %, two-sided.

    Args:
        difference: the one observed, for its spread.
        effect: the true difference; None: the observed one.
        alpha: the level. Among k arms, 5 % / k is that of the strictest of Holm's steps.

    Returns:
        At least 2; None where the effect is 0, or more than a million seeds would be needed.
    """
    effect = difference.mean if effect is None else effect
    enough = lambda n: power(difference, effect, n, alpha) >= POWER
    if effect == 0 or not enough(MOST_SEEDS):
        return None
    high = 2
    while not enough(high):
        high *= 2
    low = high // 2  # too few, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _ratio(mean: float, error: float) -> float:
    """t. Without any spread, a difference is infinitely many deviations away, and none is none."""
    if error > 0:
        return mean / error
    return math.copysign(math.inf, mean) if mean else 0.0


def _p(t: float, df: float, alternative: Alternative) -> float:
    from scipy.special import stdtr

    if alternative == "two-sided":
        return float(min(1.0, 2 * stdtr(df, -abs(t))))
    return float(stdtr(df, t if alternative == "less" else -t))


def _t_quantile(df: float, alpha: float = 1 - CONFIDENCE) -> float:
    """Beyond it lies half of ``alpha``."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


def _welch_df(s: tuple[float, float], n: tuple[int, int]) -> float:
    parts = [sd**2 / k for sd, k in zip(s, n, strict=True)]
    if sum(parts) == 0:
        return float(sum(n) - 2)
    shares = [part / sum(parts) for part in parts]
    return 1 / sum(share**2 / (k - 1) for share, k in zip(shares, n, strict=True))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _std(values: Sequence[float], scale: float | None = None) -> float:
    mean = _mean(values)
    std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return _rounded(std, max(map(abs, values)) if scale is None else scale)


def _rounded(value: float, scale: float) -> float:
    """The value, or 0 where it is nothing but the rounding of numbers as large as ``scale``."""
    return 0.0 if abs(value) <= _ROUNDING * scale else value
