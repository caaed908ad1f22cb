"""Which runs are compared with which, and what counts as one observation."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from lmxexp.compare.axes import Axis
from lmxexp.compare.pairs import by_seed, compare_arms
from tests.compare.made_runs import memory_run


def run(seed, fingerprint="f", data_seed=None):
    seeds = {"seed": seed, "data": seed if data_seed is None else data_seed}
    return memory_run(seed=seed or 0, record={"seeds": seeds, "data": {"fingerprint": fingerprint}})


def arm(values, **others):
    return {run(seed, **others): value for seed, value in values.items()}


def test_pairs_of_two_seeds_decide():
    a, b = arm({1: 3.0, 2: 3.5, 7: 9.0}), arm({2: 3.25, 1: 2.5, 8: 1.0})
    c = compare_arms(a, b)
    reference = stats.ttest_rel([3.0, 3.5], [2.5, 3.25])
    assert (c.difference.how, c.difference.n, c.mean) == ("paired", (2, 2), pytest.approx(0.375))
    assert c.difference.p == pytest.approx(reference.pvalue)
    assert [r.seed for r in c.left_out] == [7, 8]


def test_one_pair_decides_nothing():
    a, b = arm({1: 3.0, 2: 3.5}), arm({1: 2.5, 8: 1.0})
    c = compare_arms(a, b)
    assert (c.difference.how, c.left_out) == ("Welch", ())
    assert c.difference.p == pytest.approx(stats.ttest_ind([3.0, 3.5], [2.5, 1.0], equal_var=False).pvalue)


def test_too_few_values_have_a_mean_alone():
    c = compare_arms(arm({1: 3.0}), arm({1: 2.5, 2: 2.0}))
    assert (c.difference, c.mean, c.why_not) == (None, 0.75, "one seed")


def axis_of(name, values):
    return Axis(name, name, values)


def grid(values):
    """``{(seed, rate): value}`` to the values of runs, and their axis."""
    runs = {key: run(key[0]) for key in values}
    return {runs[key]: value for key, value in values.items()}, {runs[key]: key[1] for key in values}


def test_values_inside_arms_are_averaged_for_each_seed():
    rng = np.random.default_rng(0)
    raw = [{(seed, rate): float(rng.normal()) for seed in (1, 2, 3) for rate in ("a", "b")} for _ in range(2)]
    (a, rates_a), (b, rates_b) = map(grid, raw)
    c = compare_arms(a, b, [axis_of("rate", rates_a | rates_b)])
    means = [[np.mean([of[seed, rate] for rate in ("a", "b")]) for seed in (1, 2, 3)] for of in raw]
    assert c.difference.n == (3, 3)
    assert c.difference.p == pytest.approx(stats.ttest_rel(*means).pvalue)
    assert c.mean == pytest.approx(np.mean(means[0]) - np.mean(means[1]))
    assert by_seed(a, [axis_of("rate", rates_a)]) == pytest.approx(means[0])
    assert by_seed(a) == list(a.values())


def test_only_what_both_have_at_a_value_is_averaged():
    """At rate b the second arm lacks seed 2, and at c the first is alone."""
    (a, rates_a), (b, rates_b) = (
        grid({(1, "a"): 3.0, (1, "b"): 5.0, (2, "a"): 4.0, (2, "b"): 100.0, (1, "c"): 77.0}),
        grid({(1, "a"): 2.0, (1, "b"): 3.0, (2, "a"): 1.0}),
    )
    c = compare_arms(a, b, [axis_of("rate", rates_a | rates_b)])
    assert (c.difference.n, c.mean) == ((2, 2), pytest.approx(((1 + 2) / 2 + 3) / 2))
    assert sorted((r.seed, rates_a[r]) for r in c.left_out) == [(1, "c"), (2, "b")]


def test_arms_that_share_no_value_are_not_compared():
    (a, rates_a), (b, rates_b) = grid({(1, "a"): 3.0, (2, "a"): 3.1}), grid({(1, "b"): 2.0, (2, "b"): 2.1})
    c = compare_arms(a, b, [axis_of("rate", rates_a | rates_b)])
    assert (c.difference, c.why_not.partition(",")[0]) == (None, "rate differs inside the arms")


def test_other_seeds_at_the_same_values_are_welchs():
    (a, rates_a), (b, rates_b) = (
        grid({(s, r): s + 0.1 * i for s in (1, 2, 4) for i, r in enumerate("ab")}),
        grid({(s, r): s / 2 + 0.2 * i for s in (5, 6, 7) for i, r in enumerate("ab")}),
    )
    c = compare_arms(a, b, [axis_of("rate", rates_a | rates_b)])
    assert (c.difference.how, c.difference.n) == ("Welch", (3, 3))
    means = [1.05, 2.05, 4.05], [2.6, 3.1, 3.6]
    assert c.difference.p == pytest.approx(stats.ttest_ind(*means, equal_var=False).pvalue)


def test_runs_whose_seed_is_not_known_are_each_their_own():
    unknown = [SimpleNamespace(seed=None, data_seed=None, fingerprint=None) for _ in range(2)]
    values = dict(zip(map(_Hashed, unknown), (3.0, 4.0), strict=True))
    assert by_seed(values, [axis_of("rate", {})]) == [3.0, 4.0]
    assert compare_arms(values, values).difference.how == "Welch"


class _Hashed:
    """A run without a configuration."""

    def __init__(self, content):
        self.__dict__.update(content.__dict__)


def test_seeds_that_change_nothing_are_told():
    assert compare_arms(arm({1: 3.0, 2: 3.0}), arm({1: 2.0, 2: 2.0})).unvarying
    assert not compare_arms(arm({1: 3.0, 2: 3.0}), arm({1: 2.0, 2: 2.1})).unvarying
