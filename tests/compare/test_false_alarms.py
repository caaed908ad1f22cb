"""What an A/A comparison says: how often equal arms are called different, and unequal ones found."""

import math

import numpy as np
import pytest
from scipy import stats

from lmxexp.compare.comparison import compare_runs
from tests.compare.arms_in_memory import CONFIGS, runs_of
from tests.compare.made_runs import made_config, memory_run


def test_equal_arms_of_disjoint_seeds_are_called_different_in_5_percent():
    """Welch: the same design twice, seeds 0 to 4 and 5 to 9. The arms are two sweeps, the configurations are equal."""
    rng = np.random.default_rng(20)
    called = []
    for _ in range(500):
        first, second = rng.normal(3, 0.02, (2, 5))
        runs = [memory_run(config=CONFIGS["mha", i], loss=v, sweep="first") for i, v in enumerate(first)]
        runs += [memory_run(config=CONFIGS["mha", 5 + i], loss=v, sweep="second") for i, v in enumerate(second)]
        row = compare_runs(runs, by=["sweep"]).rows[1]
        assert row.difference.how == "Welch"
        called.append(row.verdict.word in ("better", "worse"))
    assert np.mean(called) == pytest.approx(0.05, abs=0.02)


def test_equal_arms_of_shared_seeds_are_called_different_in_5_percent():
    """Paired: seeds that weigh ten times what the arms add."""
    rng = np.random.default_rng(21)
    called = []
    for _ in range(500):
        seeds, (first, second) = rng.normal(3, 0.05, 4), rng.normal(0, 0.005, (2, 4))
        row = compare_runs(runs_of({"mha": seeds + first, "gqa": seeds + second})).rows[1]
        assert row.difference.how == "paired"
        called.append(row.verdict.word in ("better", "worse"))
    assert np.mean(called) == pytest.approx(0.05, abs=0.02)


def test_any_of_four_equal_arms_is_called_different_in_5_percent():
    """Holm: five arms, the null true of all."""
    rng = np.random.default_rng(22)
    labels = [("mha", 1e-3), ("gqa", 1e-3), ("mqa", 1e-3), ("sliding", 1e-3), ("mha", 3e-3)]
    configs = [
        [made_config({"attention": a}, {"optim.learning_rate": lr}, seed=s) for s in range(4)] for a, lr in labels
    ]
    any_called, any_alone = [], []
    for _ in range(500):
        values = rng.normal(3, 0.01, (5, 4))
        runs = [memory_run(config=configs[i][s], loss=values[i, s]) for i in range(5) for s in range(4)]
        rows = compare_runs(runs).rows[1:]
        assert len(rows) == 4
        any_called.append(any(row.verdict.word in ("better", "worse") for row in rows))
        any_alone.append(any(row.p < 0.05 for row in rows))
    assert np.mean(any_called) <= 0.07
    assert np.mean(any_alone) > 0.1  # what the correction is for


def test_a_real_difference_is_found_as_often_as_its_power_says():
    rng = np.random.default_rng(23)
    effect, std, n = 0.02, 0.01, 5
    limit = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(limit, n - 1, effect / std * math.sqrt(n))
    words = []
    for _ in range(300):
        seeds, noise = rng.normal(3, 0.05, n), rng.normal(0, std, n)
        words.append(compare_runs(runs_of({"mha": seeds, "gqa": seeds - effect + noise})).rows[1].verdict.word)
    assert words.count("better") / 300 == pytest.approx(power, abs=0.06)
    assert "worse" not in words


def correlated(rng, kinds, seeds, n_rates=4):
    """Runs of one design at several learning rates: those of a seed have most of their deviation in common."""
    config = {(kind, rate): made_config({"attention": kind}, {"optim.learning_rate": rate}) for kind in kinds
              for rate in (0.001 * 3**i for i in range(n_rates))}  # fmt: skip
    runs = []
    for kind, of_kind in zip(kinds, seeds, strict=True):
        for seed in of_kind:
            shift = rng.normal(0, 0.01)
            for (name, _), made in config.items():
                if name == kind:
                    loss = 3 + shift + rng.normal(0, 0.002)
                    runs.append(
                        memory_run(config={**made, "seed": seed, "data": {**made["data"], "seed": seed}}, loss=loss)
                    )
    return runs


@pytest.mark.parametrize("seeds", [((1, 2, 3), (1, 2, 3)), ((1, 2, 3), (4, 5, 6))])
def test_learning_rates_inside_arms_are_no_more_observations(seeds):
    """An A/A comparison, ``--by attention`` over a grid of learning rates: 5 % are called different, not a third."""
    rng = np.random.default_rng(24)
    rows = [compare_runs(correlated(rng, ("mha", "gqa"), seeds), by=["attention"]).rows[1] for _ in range(200)]
    assert {row.difference.n for row in rows} == {(3, 3)}
    assert np.mean([row.verdict.word in ("better", "worse") for row in rows]) == pytest.approx(0.05, abs=0.035)
