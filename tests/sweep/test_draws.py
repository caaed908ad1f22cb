"""Random points: against SciPy's tests of distributions."""

import math
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from scipy import stats

from lmxexp.compose import install
from lmxexp.interfaces import ConfigError
from lmxexp.sweep import points

TESTS: Any = stats


@pytest.fixture(scope="module", autouse=True)
def _installed():
    install()


def parse(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


def values(lines, key):
    return [float(text.partition("=")[2]) for line in lines for text in line if text.startswith(f"{key}=")]


def test_draws_are_distinct_and_the_same_for_the_same_seed():
    line = parse("attention=mha,gqa,mla", "seed=range(10)", "train.steps=5", "optim=lion,adamw")
    drawn = points.random(line, 30, 1)
    assert len(drawn) == 30
    assert len({tuple(point) for point in drawn}) == 30
    assert drawn == points.random(line, 30, 1)
    assert drawn != points.random(line, 30, 2)
    assert all(point in points.grid(line) for point in drawn)
    # A longer search goes on where a shorter one ended: what was run counts.
    assert points.random(line, 40, 1)[:30] == drawn


def test_fewer_combinations_than_draws_are_all_of_them():
    line = parse("attention=mha,gqa", "seed=1,2,3", "optim=lion")
    for n in (6, 7, 1000):
        assert points.random(line, n, 0) == points.grid(line)
    assert len(points.random(line, 5, 0)) == 5
    assert points.random(parse("optim=lion"), 4, 0) == [["optim=lion"]]
    assert len(points.random(parse("seed=int(interval(1,3))"), 10, 0)) == 3


def test_almost_all_combinations_are_found():
    line = parse("a=range(20)", "b=range(10)")
    assert len(points.random(line, 199, 0)) == 199


@pytest.mark.parametrize("n", [0, -1])
def test_no_draws_are_refused(n):
    with pytest.raises(ConfigError, match=f"n_trials={n} must be at least 1"):
        points.random(parse("seed=1,2"), n, 0)


@pytest.mark.parametrize(
    ("override", "reference"),
    [
        ("x=interval(2,5)", stats.uniform(2, 3)),
        ("x=interval(-1,1)", stats.uniform(-1, 2)),
        ("x=tag(log,interval(1e-4,1e-1))", stats.loguniform(1e-4, 1e-1)),
        ("x=tag(a,log,b,interval(3,4000))", stats.loguniform(3, 4000)),
    ],
)
def test_draws_of_an_interval_have_its_distribution(override, reference):
    drawn = values(points.random(parse(override, "y=1,2"), 2000, 3), "x")
    assert stats.kstest(drawn, reference.cdf).pvalue > 0.01
    low, high = reference.support()
    assert low <= min(drawn)
    assert max(drawn) <= high


def test_draws_are_independent():
    lines = points.random(parse("x=interval(0,1)", "y=interval(0,1)", "z=a,b"), 2000, 0)
    x, y = values(lines, "x"), values(lines, "y")
    z = ["z=a" in line for line in lines]
    assert TESTS.pearsonr(x, y).pvalue > 0.01
    assert TESTS.ks_2samp([v for v, a in zip(x, z, strict=True) if a], x).pvalue > 0.01
    assert stats.binomtest(sum(z), len(z)).pvalue > 0.01


@pytest.mark.parametrize(
    ("override", "cdf"),
    [
        ("x=int(interval(1,6))", dict.fromkeys(range(1, 7), 1 / 6)),
        (
            "x=tag(log,int(interval(1,8)))",  # k stands for [k, k + 1)
            {k: math.log((k + 1) / k) / math.log(9) for k in range(1, 9)},
        ),
    ],
)
def test_whole_numbers_of_an_interval(override, cdf):
    """Both ends belong to it, and are as probable as the others."""
    drawn = values(points.random(parse(override, "y=interval(0,1)"), 6000, 0), "x")
    assert set(drawn) == set(cdf)
    counts = [drawn.count(k) for k in cdf]
    assert stats.chisquare(counts, np.array(list(cdf.values())) * len(drawn)).pvalue > 0.01
    assert all(isinstance(o.value(), int) for o in parse(*points.random(parse(override), 3, 0)[0]))


def test_rounding_does_not_leave_a_narrow_interval():
    drawn = values(points.random(parse("x=interval(1.00012,1.00019)", "y=range(50)"), 40, 0), "x")
    assert all(1.00012 <= x <= 1.00019 for x in drawn)
    assert len(values(points.random(parse("x=interval(1.00012,1.00019)"), 8, 0), "x")) == 8


@pytest.mark.parametrize("low", ["0", "-1"])
def test_a_logarithmic_interval_begins_above_0(low):
    with pytest.raises(ConfigError, match=r"attention.scale=tag.*begins above 0"):
        points.random(parse(f"attention.scale=tag(log,interval({low},1))"), 2, 0)


@pytest.mark.parametrize("interval", ["interval(-inf,1)", "interval(0,inf)", "interval(nan,1)"])
def test_an_interval_without_an_end_is_refused(interval):
    with pytest.raises(ConfigError, match=r"x=interval\(.*must be finite"):
        points.random(parse(f"x={interval}"), 2, 0)


def test_an_interval_that_ends_before_it_begins_is_refused():
    with pytest.raises(ConfigError, match=r"x=interval\(3,2\): it ends at 2, before it begins at 3"):
        points.random(parse("x=interval(3,2)"), 2, 0)


def test_draws_keep_group_and_operator():
    overrides = parse("+new=interval(0,1)", "model/attention=mha,gqa", "++a.b=int(interval(1,9))")
    [first, *_] = points.random(overrides, 5, 0)
    assert first[0].startswith("+new=0.")
    assert first[1] in ("attention=mha", "attention=gqa")
    assert first[2].startswith("++a.b=")
