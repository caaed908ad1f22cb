"""Against scipy.stats, against simulation, and against published figures."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from lmxexp.compare.statistics import (
    holm,
    one_sample,
    paired,
    power,
    sample,
    seeds_needed,
    welch,
)

rng = np.random.default_rng(0)
CASES = [
    (rng.normal(3, 0.02, n).tolist(), rng.normal(3.01, 0.05, m).tolist()) for n, m in ((2, 2), (3, 3), (3, 7), (20, 5))
]


@pytest.mark.parametrize("values", [c[1] for c in CASES])
def test_interval_of_a_mean(values):
    found = sample(values)
    reference = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.n, found.mean) == (len(values), pytest.approx(np.mean(values), rel=1e-12))
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_one_value_has_no_interval():
    found = sample([3.0])
    assert (found.n, found.mean, found.std, found.low, found.high) == (1, 3.0, None, None, None)


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_paired_is_scipys(n):
    a = rng.normal(3, 0.02, n)
    b = a + rng.normal(0.01, 0.005, n)
    found, reference = paired(a.tolist(), b.tolist()), stats.ttest_rel(a, b)
    interval = reference.confidence_interval(0.95)
    assert found.how == "paired"
    assert (found.p, found.df) == (pytest.approx(reference.pvalue, rel=1e-9), n - 1)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.mean == pytest.approx(np.mean(a - b), rel=1e-9)


@pytest.mark.parametrize(("a", "b"), CASES)
def test_welch_is_scipys(a, b):
    found, reference = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.how == "Welch"
    assert (found.p, found.df) == pytest.approx((reference.pvalue, reference.df), rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert found.mean == pytest.approx(np.mean(a) - np.mean(b), rel=1e-9)


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
def test_one_sample_is_scipys(alternative):
    values = rng.normal(3.28, 0.002, 12)
    found = one_sample(values.mean(), values.std(ddof=1), 12, 3.2795, alternative)
    reference = stats.ttest_1samp(values, 3.2795, alternative=alternative)
    assert (found.t, found.p, found.df) == pytest.approx((reference.statistic, reference.pvalue, 11), rel=1e-9)
    two_sided = stats.ttest_1samp(values, 3.2795).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((two_sided.low, two_sided.high), rel=1e-9)


def test_softcap_records_of_modded_nanogpt():
    """Eighty runs: mean 3.2791, standard deviation 0.0019, p = 0.0001 against 3.28, one-sided.

    The figures are rounded. Every mean and deviation that round to them give some p; the published one is among these.
    """
    ps = [
        one_sample(mean, std, 80, 3.28, "less").p
        for mean, std in itertools.product((3.27905, 3.2791, 3.27915), (0.00185, 0.0019, 0.00195))
    ]
    assert min(ps) < 1e-4 <= max(ps)
    assert max(ps) < 1.5e-4
    assert one_sample(3.2791, 0.0019, 80, 3.28, "less").p == pytest.approx(stats.t.cdf(-0.0009 / 0.0019 * 80**0.5, 79))


def test_one_sample_needs_two_values():
    with pytest.raises(ValueError, match="n=1"):
        one_sample(3.0, 0.1, 1, 3.1)


def test_nothing_is_divided_by_zero():
    assert (paired([3.1, 3.2], [3.0, 3.1]).p, paired([3.1, 3.2], [3.0, 3.1]).mean) == (0.0, pytest.approx(0.1))
    same = paired([3.1, 3.2, 3.3], [3.1, 3.2, 3.3])
    assert (same.mean, same.low, same.high, same.p, seeds_needed(same)) == (0, 0, 0, 1.0, None)
    equal = welch([1.0, 1.0], [1.0, 1.0, 1.0])
    assert (equal.p, equal.low, equal.high) == (1.0, 0, 0)
    assert welch([1.0, 1.0], [2.0, 2.0]).p == 0.0
    assert seeds_needed(welch([1.0, 1.0], [2.0, 2.0])) == 2
    one_constant, reference = welch([1.0, 1.0], [2.0, 3.0]), stats.ttest_ind([1, 1], [2, 3], equal_var=False)
    assert one_constant.p == pytest.approx(reference.pvalue)
    assert one_sample(3.0, 0.0, 5, 3.0).p == 1.0
    assert one_sample(2.0, 0.0, 5, 3.0, "less").p == 0.0


def test_the_rounding_of_floats_is_no_spread():
    """0.3 - 0.2 and 0.4 - 0.3 differ in the last bit."""
    found = paired([0.3, 0.4, 0.5], [0.2, 0.3, 0.4])
    assert (found.std, found.p) == ((0.0, 0.0), 0.0)
    assert welch([0.1 + 0.2, 0.3], [0.3, 0.3]).p == 1.0


def brute_holm(ps, alpha):
    """Step down: reject the smallest while it is below alpha over the number that is left."""
    rejected, left = [False] * len(ps), sorted(range(len(ps)), key=lambda i: ps[i])
    while left and ps[left[0]] <= alpha / len(left):
        rejected[left.pop(0)] = True
    return rejected


def test_holm_is_the_step_down_procedure():
    for k in (1, 2, 5, 9):
        for _ in range(50):
            ps = (rng.uniform(0, 1, k) ** 3).tolist()
            corrected = holm(ps)
            for alpha in (0.01, 0.05, 0.2):
                assert [p <= alpha for p in corrected] == brute_holm(ps, alpha)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "n"), [(0.01, 3), (0.02, 5), (0.004, 30)])
def test_power_of_pairs_is_what_simulation_finds(effect, n):
    std = 0.01
    observed = paired((3 + np.array([0, std]) * math.sqrt(2)).tolist(), [3.0, 3.0])
    assert observed.std[0] == pytest.approx(std)
    differences = np.random.default_rng(1).normal(effect, std, (40_000, n))
    rate = np.mean(stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert power(observed, effect, n) == pytest.approx(rate, abs=0.01)
    assert power(observed, effect, n) == pytest.approx(power(observed, -effect, n))


@pytest.mark.parametrize(("effect", "n"), [(0.02, 4), (0.01, 20)])
def test_power_of_unpaired_runs_is_what_simulation_finds(effect, n):
    observed = welch((3 + np.array([-0.01, 0.01])).tolist(), (3 + np.array([-0.004, 0.004])).tolist())
    generator = np.random.default_rng(2)
    a = generator.normal(3 + effect, observed.std[0], (40_000, n))
    b = generator.normal(3, observed.std[1], (40_000, n))
    rate = np.mean(stats.ttest_ind(a, b, axis=1, equal_var=False).pvalue < 0.05)
    assert power(observed, effect, n) == pytest.approx(rate, abs=0.012)


def integrated_power(shift, df):
    """Over the quantiles of the sample deviation: the mean must lie beyond that many of them."""
    deviations = stats.chi.ppf((np.arange(20_000) + 0.5) / 20_000, df) / df**0.5
    limit = stats.t.ppf(0.975, df)
    return np.mean(stats.norm.sf(limit * deviations - shift) + stats.norm.cdf(-limit * deviations - shift))


@pytest.mark.parametrize("n", [2, 3, 10, 100, 1000])
def test_power_is_the_integral_over_deviations(n):
    observed = paired([3.0, 3.02, 3.03], [3.0, 3.0, 3.0])
    for shift in (0.1, 1, 3, 8.3, 20, 45, 57.8):  # at the larger ones, SciPy's noncentral t has NaN in a tail
        found = power(observed, shift * observed.std[0] / n**0.5, n)
        assert found == pytest.approx(integrated_power(shift, n - 1), abs=1e-5)


@pytest.mark.parametrize("how", [paired, welch])
@pytest.mark.parametrize("effect", [0.05, 0.02, 0.01, 0.003, 0.0005])
def test_seeds_needed_is_the_first_number_with_the_power(how, effect):
    observed = how([3.0, 3.02, 3.03], [3.0, 3.01, 3.0])
    n = seeds_needed(observed, effect)
    assert power(observed, effect, n) >= 0.8
    assert n == 2 or power(observed, effect, n - 1) < 0.8


def test_seeds_needed_of_a_textbook_case():
    """Half a standard deviation, paired: 34 pairs (Cohen 1988; every power calculator)."""
    observed = paired((3 + np.array([0, 1]) * math.sqrt(2)).tolist(), [3.0, 3.0])
    assert seeds_needed(observed, 0.5) == 34
    two_groups = welch([2.0, 2 + math.sqrt(2)], [2.0, 2 + math.sqrt(2)])
    assert seeds_needed(two_groups, 0.5) == 64


def test_a_stricter_level_needs_more_seeds():
    """Bonferroni's at 80 %, half a standard deviation: by the noncentral t of SciPy's other implementation."""
    observed = paired((3 + np.array([0, 1]) * math.sqrt(2)).tolist(), [3.0, 3.0])
    found = {alpha: seeds_needed(observed, 0.5, alpha) for alpha in (0.05, 0.05 / 3, 0.005)}
    for alpha, n in found.items():
        by_scipy = [
            stats.nct.sf(stats.t.ppf(1 - alpha / 2, k - 1), k - 1, 0.5 * k**0.5)
            + stats.nct.cdf(-stats.t.ppf(1 - alpha / 2, k - 1), k - 1, 0.5 * k**0.5)
            for k in (n - 1, n)
        ]
        assert by_scipy[0] < 0.8 <= by_scipy[1]
    assert list(found.values()) == sorted(found.values())


def test_seeds_needed_gives_up():
    observed = paired([3.0, 3.1, 3.2], [3.1, 3.0, 3.2])
    assert seeds_needed(observed, 1e-9) is None
    assert seeds_needed(observed) is None
