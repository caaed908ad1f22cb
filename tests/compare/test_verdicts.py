"""Where no winner is called: budgets that explain a difference, and arms that differ inside or were tuned."""

import math

import numpy as np
import pytest
from scipy import stats

from lmxexp.compare.comparison import compare, compare_runs
from lmxexp.interfaces import ConfigError
from tests.compare.arms_in_memory import runs_of
from tests.compare.made_runs import make_sweep, memory_run

MHA, GQA = [3.00, 3.05, 2.95], [2.98, 3.02, 2.935]


def matched(r, gain=0.05, **arguments):
    """gqa with ``1 + r`` times the parameters of mha, and better by ``gain`` with next to no noise."""
    runs = runs_of({"mha": MHA}, record={"params": 1_000_000})
    values = [v - gain + 0.0001 * i for i, v in enumerate(MHA)]
    runs += runs_of({"gqa": values}, record={"params": round(1_000_000 * (1 + r))})
    return compare_runs(runs, budget="params", **arguments).rows[1]


def test_no_winner_where_the_mismatch_alone_could_explain_it():
    """0.076 * 3.0 * log(1.3) = 0.0598 is more than the 0.05 by which it is ahead."""
    row = matched(0.3)
    assert row.mismatch.explains == pytest.approx(0.076 * 3.0 * math.log(1.3))
    assert row.verdict.word == "not distinguishable"
    assert row.verdict.reason == "the mismatch of +30 % params alone could explain it"


def test_a_mismatch_too_small_to_explain_it():
    assert matched(0.2).verdict.word == "better"  # 0.0416


def test_the_end_of_the_interval_that_is_nearer_decides():
    """The mismatch explains less than the difference and more than the near end of its interval."""
    gain = 0.076 * 3.0 * math.log(1.3) + 0.0001
    row = matched(0.3, gain)
    assert -row.difference.mean > row.mismatch.explains - 0.0001 > -row.difference.high - 0.0001
    assert row.verdict.word == "not distinguishable"


def test_who_wins_with_less_has_won():
    assert matched(-0.5).verdict.word == "better"


def test_a_baseline_that_wins_with_more_has_not_won():
    assert matched(-0.5, gain=-0.1).verdict.reason == "the mismatch of -50 % params alone could explain it"
    assert matched(0.5, gain=-0.1).verdict.word == "worse"


def test_a_sensitivity_of_the_users():
    assert matched(0.3, sensitivity=0.0).verdict.word == "better"
    assert matched(0.01, sensitivity=10.0).verdict.word == "not distinguishable"


@pytest.mark.parametrize(("r", "word"), [(0.02, "not distinguishable"), (0.005, "better"), (-0.2, "better")])
def test_memory_beyond_the_tolerance_prevents_a_verdict(r, word):
    runs = runs_of({"mha": MHA}, summary={"mem/peak_gb": 1.0})
    runs += runs_of({"gqa": GQA}, summary={"mem/peak_gb": 1 + r})
    row = compare_runs(runs, budget="memory").rows[1]
    assert (row.mismatch.relative, row.verdict.word) == (pytest.approx(r), word)


def test_costs_are_not_judged_by_budgets():
    runs = runs_of({"mha": MHA}, summary={"perf/tokens_per_s": 1.0}, record={"params": 100})
    for i, run in enumerate(runs):
        run.summary["perf/tokens_per_s"] = 100.0 + i
    others = runs_of({"gqa": GQA}, record={"params": 1000})
    for i, run in enumerate(others):
        run.summary["perf/tokens_per_s"] = 120.0 + i * 1.1
    assert compare_runs([*runs, *others], metric="perf/tokens_per_s", budget="params").rows[1].verdict.word == "better"


def test_the_budget_is_that_of_the_sweep(tmp_path):
    points = [
        {"choices": {"attention": kind}, "seed": seed, "loss": loss, "record": {"params": params}}
        for kind, losses, params in (("mha", MHA, 1000), ("gqa", GQA, 1010))
        for seed, loss in enumerate(losses)
    ]
    match = {"kind": "params", "reference": ["attention=mha"], "adjust": "d_ff", "tolerance": 0.01}
    make_sweep(tmp_path / "matched", points, match=match)
    comparison = compare([tmp_path / "matched"])
    assert (comparison.budget, comparison.rows[1].mismatch.relative) == ("params", pytest.approx(0.01))
    assert compare([tmp_path / "matched"], budget="tokens").rows[1].mismatch.relative == 0
    make_sweep(tmp_path / "plain", points)
    assert compare([tmp_path / "plain"]).budget == "tokens"


def rates(kinds_and_rates, seeds=2):
    rng = np.random.default_rng(3)
    return [
        memory_run({"attention": kind}, {"optim.learning_rate": rate}, seed=seed, loss=loss + rng.normal(0, 1e-3))
        for kind, rate, loss in kinds_and_rates
        for seed in range(seeds)
    ]


def test_what_differs_inside_arms_makes_pairs_where_all_have_it():
    """Both arms at two learning rates, one of them much worse: paired by it, its effect cancels. Each seed is one
    observation, its mean over both."""
    runs = rates([("mha", 0.1, 4.0), ("mha", 0.01, 3.0), ("gqa", 0.1, 3.95), ("gqa", 0.01, 2.95)], seeds=3)
    comparison = compare_runs(runs, by=["attention"])
    row = comparison.rows[1]
    loss = {(r.choices["attention"], r.flat["optim.learning_rate"], r.seed): r.summary["eval/loss"] for r in runs}
    mha, gqa = ([np.mean([loss[kind, rate, s] for rate in (0.1, 0.01)]) for s in range(3)] for kind in ("mha", "gqa"))
    assert (row.difference.how, row.difference.n, row.verdict.word) == ("paired", (3, 3), "better")
    assert row.p == pytest.approx(stats.ttest_rel(gqa, mha).pvalue)
    assert (row.sample.n, row.sample.mean) == (3, pytest.approx(np.mean(gqa)))
    assert row.sample.std == pytest.approx(np.std(gqa, ddof=1))
    assert any("optim.learning_rate differs" in w and "each seed counts once" in w for w in comparison.warnings)


def test_what_differs_inside_arms_and_is_not_in_all_is_no_pair():
    runs = rates([("mha", 0.01, 3.0), ("gqa", 0.1, 2.5), ("gqa", 0.01, 3.05)])
    comparison = compare_runs(runs, by=["attention"])
    row = comparison.rows[1]
    assert (row.difference.n, len(row.compared.left_out)) == ((2, 2), 2)
    assert row.verdict.word != "better"
    assert any("not alike in all" in w for w in comparison.warnings)


def test_arms_that_share_no_value_cannot_be_compared():
    runs = rates([("mha", 0.01, 3.0), ("mha", 0.02, 3.0), ("gqa", 0.03, 2.5), ("gqa", 0.04, 2.5)])
    row = compare_runs(runs, by=["attention"]).rows[1]
    assert (row.verdict.word, row.difference) == ("not comparable", None)
    assert "optim.learning_rate differs inside the arms" in row.verdict.reason


def test_what_differs_between_arms_alone_is_told():
    comparison = compare_runs(rates([("mha", 0.01, 3.0), ("gqa", 0.02, 2.5)], seeds=3), by=["attention"])
    assert any("the arms differ in optim.learning_rate as well" in w for w in comparison.warnings)
    assert comparison.rows[1].difference.n == (3, 3)


def test_tuned_arms_are_at_their_best(tmp_path):
    losses = {("mha", 0.001): 3.0, ("mha", 0.003): 2.8, ("mha", 0.01): 2.9,
              ("gqa", 0.001): 2.95, ("gqa", 0.003): 2.85, ("gqa", 0.01): 2.7}  # fmt: skip
    points = [
        {
            "choices": {"attention": kind},
            "settings": {"optim.learning_rate": rate},
            "seed": seed,
            "loss": loss + seed / 1000,
        }
        for (kind, rate), loss in losses.items()
        for seed in range(3)
    ]
    points[-1] |= {"status": "diverged", "error": "nan"}  # gqa at 0.01: the best of those that survived
    tune = {"key": "optim.learning_rate", "values": [0.001, 0.003, 0.01]}
    comparison = compare([make_sweep(tmp_path / "tuned", points, tune=tune)])
    assert [arm.label for arm in comparison.arms] == [
        "attention=mha at optim.learning_rate=0.003",
        "attention=gqa at optim.learning_rate=0.003",
    ]
    assert [row.sample.mean for row in comparison.rows] == pytest.approx([2.801, 2.851])
    assert comparison.rows[1].verdict.failures == ""
    assert [run.status for run in comparison.failed] == ["diverged"]
    assert comparison.tuning is not None
    assert {arm.label: arm.optimum.value for arm in comparison.tuning.arms} == {
        "attention=mha": 0.003,
        "attention=gqa": 0.003,
    }


def test_tune_of_the_users(tmp_path):
    runs = rates([("mha", 0.1, 4.0), ("mha", 0.01, 3.0), ("gqa", 0.1, 3.5), ("gqa", 0.01, 3.6)])
    comparison = compare_runs(runs, tune="optim.learning_rate")
    assert [arm.label.partition(" at ")[2] for arm in comparison.arms] == [
        "optim.learning_rate=0.01",
        "optim.learning_rate=0.1",
    ]
    with pytest.raises(ConfigError, match=r"--tune optim.learning_rat: no run .* did you mean optim.learning_rate\?"):
        compare_runs(runs, tune="optim.learning_rat")
