"""Optima over a tuned setting, the edges of the bracket, and winners that change with it."""

import math

import numpy as np
import pytest

from lmxexp.compare.arms import group
from lmxexp.compare.read import find_runs
from lmxexp.compare.tuned import analyse
from lmxexp.compare.tuned_words import lines, table, warnings
from lmxexp.interfaces import ConfigError
from tests.compare.made_runs import make_sweep, memory_run

LR = "optim.learning_rate"
VALUES = [0.000111, 0.000333, 0.001, 0.003, 0.009]


def runs(losses, kind="mha", seeds=(1, 2), **others):
    """One run for each value and seed; the seeds' losses are 0.1 apart around the mean."""
    made = []
    for value, loss in losses.items():
        for seed in seeds:
            shift = 0.1 * (seed - sum(seeds) / len(seeds))
            run = memory_run({"attention": kind}, {LR: value}, seed=seed, loss=loss + shift, **others)
            made.append(run)
    return made


def parabola(lowest, at, curvature=0.2):
    return {v: lowest + curvature * math.log(v / at) ** 2 for v in VALUES}


def test_curve_and_optimum():
    (arm,) = analyse({"attention=mha": runs(parabola(2.0, 0.001))}, LR).arms
    expected = list(parabola(2.0, 0.001).values())
    assert arm.label == "attention=mha"
    assert arm.values == VALUES
    np.testing.assert_allclose(arm.mean, expected, rtol=1e-12)
    np.testing.assert_allclose(arm.low, np.array(expected) - 0.05, rtol=1e-12)
    np.testing.assert_allclose(arm.high, np.array(expected) + 0.05, rtol=1e-12)
    assert [t.n for t in arm.trials] == [2] * 5
    assert arm.diverged == [0] * 5
    assert (arm.optimum.value, arm.edge, arm.to_add) == (0.001, None, [])


@pytest.mark.parametrize("at", [0.0013, 0.0007, 0.001])
@pytest.mark.parametrize("values", [VALUES, [0.0002, 0.001, 0.0025]])
def test_the_estimate_is_the_vertex_of_the_parabola(at, values):
    losses = {v: 2.0 + 0.2 * math.log(v / at) ** 2 for v in values}
    (arm,) = analyse({"a": runs(losses)}, LR).arms
    assert arm.optimum.value == 0.001
    assert arm.estimate == pytest.approx(at, rel=1e-9)
    fit = np.polyfit(np.log(values), list(losses.values()), 2)
    assert arm.estimate == pytest.approx(math.exp(-fit[1] / (2 * fit[0])), rel=1e-6)


def test_no_estimate_where_nothing_brackets_it():
    flat = analyse({"a": runs(dict.fromkeys(VALUES[:3], 2.0))}, LR).arms[0]
    assert (flat.optimum.value, flat.estimate) == (VALUES[0], None)
    losses = parabola(2.0, 0.001)
    diverged = [*runs({v: x for v, x in losses.items() if v != 0.003}), *runs({0.003: 9.0}, status="diverged")]
    arm = analyse({"a": diverged}, LR).arms[0]
    assert (arm.optimum.value, arm.edge, arm.estimate) == (0.001, None, None)


@pytest.mark.parametrize(
    ("at", "edge", "add", "listed"),
    [
        (0.03, "highest", [0.027, 0.081], "0.000111,0.000333,0.001,0.003,0.009,0.027,0.081"),
        (0.00001, "lowest", [1.23e-05, 3.7e-05], "1.23e-05,3.7e-05,0.000111,0.000333,0.001,0.003,0.009"),
    ],
)
def test_an_optimum_on_the_edge(at, edge, add, listed):
    tuning = analyse({"attention=mha": runs(parabola(2.0, at))}, LR)
    (arm,) = tuning.arms
    assert (arm.edge, arm.to_add, arm.estimate) == (edge, add, None)
    end = "0.009" if edge == "highest" else "0.000111"
    assert warnings(tuning) == [
        f"attention=mha: the optimum, {LR}={end}, is the {edge} value tried: widen the bracket, tune.values=[{listed}]"
    ]


def test_one_value_is_no_tuning():
    tuning = analyse({"a": runs({0.001: 2.0})}, LR)
    assert tuning.arms[0].edge == "only"
    assert "nothing was tuned" in warnings(tuning)[0]


def test_values_that_diverged_bracket_but_are_no_optimum():
    """One of two seeds diverges at 0.009; the one that survives is the best of all, by luck."""
    losses = parabola(2.0, 0.003)
    made = [run for run in runs(losses) if run.flat[LR] != 0.009]
    made += [*runs({0.009: 1.0}, seeds=(1,)), *runs({0.009: 9.0}, seeds=(2,), status="diverged")]
    tuning = analyse({"a": made}, LR)
    (arm,) = tuning.arms
    assert arm.diverged == [0, 0, 0, 0, 1]
    assert (arm.optimum.value, arm.edge) == (0.003, None)
    assert warnings(tuning) == []
    assert "diverged at 0.009 (1)" in lines(tuning)[1]
    # A loss that is no number is a divergence, whatever the status says.
    (arm,) = analyse({"a": runs({0.001: math.nan, 0.003: 2.0})}, LR).arms
    assert arm.diverged == [2, 0]


@pytest.mark.parametrize("status", ["failed", "pruned", "running", "waiting", "stopped", "killed"])
def test_missing_runs_are_told(status):
    losses = parabola(2.0, 0.001)
    made = [run for run in runs(losses) if (run.flat[LR], run.seed) != (0.001, 2)]
    made += runs({0.001: 0.5}, seeds=(2,), status=status)
    tuning = analyse({"a": made}, LR)
    assert tuning.arms[0].optimum.value in (0.000333, 0.003)
    assert f"a: runs are missing at {LR}=0.001 (1): no optimum is looked for there" in warnings(tuning)
    assert math.isfinite(tuning.arms[0].mean[2])


def test_no_value_where_all_seeds_ended_well():
    tuning = analyse({"a": runs(parabola(2.0, 0.001), status="diverged")}, LR)
    assert (tuning.arms[0].optimum, tuning.arms[0].edge, tuning.winner) == (None, None, None)
    assert math.isnan(tuning.arms[0].mean[0])
    assert f"a: no value of {LR} at which all seeds ended well" in lines(tuning)[1]


def test_a_seed_counts_once():
    """Also where an earlier attempt failed, and by the mean of what the arm does not name."""
    made = [*runs({0.001: 5.0}, seeds=(1,)), *runs({0.001: 2.0}, "mqa", seeds=(1,))]
    failed = runs({0.001: 1.0}, seeds=(1,), status="failed")
    for order in ([*made, *failed], [*failed, *made]):
        trial = analyse({"a": order}, LR).arms[0].trials[0]
        assert (trial.n, trial.mean, trial.unfinished) == (1, 3.5, 0)


def test_a_value_of_fewer_seeds_is_no_optimum():
    made = [*runs({0.001: 2.0, 0.003: 2.5}), *runs({0.009: 1.5}, seeds=(1,))]
    assert analyse({"a": made}, LR).arms[0].optimum.value == 0.001


def test_what_stands_for_an_arm_of_which_no_value_is_complete():
    """The best of those with the most survivors; None where no run ended well."""
    made = [*runs({0.001: 2.0}, seeds=(1, 2)), *runs({0.001: 1.0}, seeds=(3,), status="diverged")]
    made += [*runs({0.003: 1.0}, seeds=(1,)), *runs({0.003: 1.0}, seeds=(2, 3), status="diverged")]
    (arm,) = analyse({"a": made}, LR).arms
    assert (arm.optimum, arm.representative.value) == (None, 0.001)
    made = [*runs({0.001: 2.0}), *runs({0.003: 1.0}), *runs({0.003: 1.0}, seeds=(3,), status="diverged")]
    (complete,) = analyse({"a": made}, LR).arms
    assert complete.representative is complete.optimum is complete.trials[0]
    (none,) = analyse({"a": runs({0.001: 2.0}, status="diverged")}, LR).arms
    assert none.representative is None


def test_the_curves_in_numbers():
    losses = {0.001: 2.0, 0.003: 2.5, 0.009: 3.0}
    lost = [*runs({0.001: 2.5, 0.003: 2.25}, "mqa"), *runs({0.009: 9.0}, "mqa", seeds=(1,), status="diverged")]
    tuning = analyse({"a": runs(losses), "b": [*lost, *runs({0.009: 2.75}, "mqa", seeds=(2, 3))]}, LR)
    rows = [[LR, "a", "b"], ["0.001", "2 *", "2.5"], ["0.003", "2.5", "2.25 *"], ["0.009", "3", "2.75 (1 diverged)"]]
    assert table(tuning) == rows
    four = analyse({f"arm{i}": runs({0.001: 2.0, 0.003: 2.5, 0.009: 3.0}) for i in range(4)}, LR)
    assert table(four)[0] == [LR, "0.001", "0.003", "0.009"]
    assert table(four)[1] == ["arm0", "2 *", "2.5", "3"]
    missing = analyse({"a": runs({0.001: 2.0}), "b": runs({0.003: 2.0}, "mqa", status="waiting")}, LR)
    assert table(missing)[1:] == [["0.001", "2 *", "-"], ["0.003", "-", "- (2 missing)"]]


def test_a_point_that_says_nothing_of_the_setting_is_left_out():
    """It failed before its configuration was written, and its sweep does not name the key."""
    lost = memory_run({}, {}, seed=9, status="failed")
    lost.config.clear()
    (arm,) = analyse({"a": [*runs({0.001: 2.0}), lost]}, LR).arms
    assert [(t.value, t.n, t.unfinished) for t in arm.trials] == [(0.001, 2, 0)]


def test_a_winner_that_changes():
    mha, mqa = runs(parabola(2.0, 0.0006)), runs(parabola(2.05, 0.003), "mqa")
    tuning = analyse({"attention=mha": mha, "attention=mqa": mqa}, LR)
    assert tuning.winners == dict(zip(VALUES, ["attention=mha"] * 3 + ["attention=mqa"] * 2, strict=True))
    assert tuning.winner_changes
    # The means at 0.001: 2 + 0.2 ln(1/0.6)^2 = 2.052; at 0.003 of mqa: 2.05.
    assert tuning.winner == "attention=mqa"
    assert warnings(tuning) == [
        f"the winner changes with {LR}: at 0.000111 to 0.001 attention=mha, at 0.003 to 0.009 attention=mqa"
    ]
    assert "each at its own optimum, attention=mqa is ahead" in lines(tuning)


def test_a_winner_that_does_not_change():
    tuning = analyse({"a": runs(parabola(2.0, 0.001)), "b": runs(parabola(2.5, 0.001), "mqa")}, LR)
    assert not tuning.winner_changes
    assert warnings(tuning) == []
    assert f"a is ahead at each of 5 values of {LR}" in lines(tuning)


def test_winners_are_told_where_all_arms_are_known():
    a, b = parabola(2.0, 0.001), parabola(2.5, 0.001)
    diverged = [*runs({v: x for v, x in a.items() if v < 0.003}), *runs({0.003: 1, 0.009: 1}, status="diverged")]
    waiting = [*runs({v: x for v, x in b.items() if v > 0.0002}, "mqa"), *runs({0.000111: 1}, "mqa", status="waiting")]
    # At 0.000111 b is not known; at 0.003 and 0.009 a diverged.
    assert analyse({"a": diverged, "b": waiting}, LR).winners == {0.000333: "a", 0.001: "a", 0.003: "b", 0.009: "b"}
    both = analyse({"a": runs({0.1: 2.0}), "b": runs({0.1: 2.0}, "mqa")}, LR)
    assert both.winners == {0.1: "a and b"}
    assert "each at its own optimum, a and b are equal" in lines(both)
    none = analyse({"a": runs({0.1: 2.0}, status="diverged"), "b": runs({0.1: 2.0}, "mqa", status="diverged")}, LR)
    assert none.winners == {}


def test_other_values_for_each_arm_are_no_tuning_of_equals():
    tuning = analyse({"a": runs(parabola(2.0, 0.001)), "b": runs({0.001: 2.5, 0.1: 2.6, 0.00001: 3.0}, "mqa")}, LR)
    assert "not tried at the same values" in warnings(tuning)[0]
    assert tuning.winners == {0.001: "a"}


def test_more_is_better_of_accuracy():
    made = [
        memory_run({}, {LR: v}, summary={"eval/accuracy": accuracy})
        for v, accuracy in zip(VALUES, [0.1, 0.2, 0.5, 0.3, 0.1], strict=True)
    ]
    assert analyse({"a": made}, LR, "eval/accuracy").arms[0].optimum.value == 0.001
    assert analyse({"a": made}, LR, "eval/accuracy").arms[0].estimate == pytest.approx(0.0012, rel=0.2)
    assert analyse({"a": made}, LR, "eval/accuracy", higher_is_better=False).arms[0].optimum.value == 0.000111
    assert analyse({"a": runs(parabola(2.0, 0.001))}, LR, higher_is_better=True).arms[0].optimum.value == 0.000111


@pytest.mark.parametrize("value", [None, "auto", -1.0, True])
def test_a_setting_that_is_no_positive_number(value):
    with pytest.raises(
        ConfigError, match=f"--tune {LR}: a curve against it needs a positive number, and mha_1 has {value}: leave"
    ):
        analyse({"a": runs({0.001: 2.0} | {value: 2.0})}, LR)
    with pytest.raises(ConfigError, match="a curve against it needs a positive number, and mha_1 does not"):
        analyse({"a": runs({0.001: 2.0})}, "optim.beta")


def test_arms_of_a_sweep_on_disk(tmp_path):
    """Also points that failed before their configuration was written, and whose ``match`` solved for a width."""
    points = [
        {"choices": {"attention": kind}, "settings": {LR: value}, "seed": seed, "loss": loss + 0.01 * seed,
         "adjusted": {"model.d_ff": 352 if kind == "mqa" else 336}}
        for kind, shift in (("mha", 0.0), ("mqa", 0.5))
        for value, loss in parabola(2.0 + shift, 0.001).items()
        for seed in (1, 2)
    ]  # fmt: skip
    points[-1] |= {"early": True, "status": "failed", "error": "no memory"}
    found = find_runs([make_sweep(tmp_path / "s", points, tune={"key": LR, "values": VALUES})])
    groups = all_of(found, LR)
    assert {label: len(of) for label, of in groups.items()} == {"attention=mha": 10, "attention=mqa": 10}
    tuning = analyse(groups, LR)
    assert [arm.optimum.value for arm in tuning.arms] == [0.001, 0.001]
    assert [t.unfinished for t in tuning.arms[1].trials] == [0, 0, 0, 0, 1]
    assert tuning.winner == "attention=mha"
    by = all_of(found, LR, by=["attention"])
    assert {label: len(of) for label, of in by.items()} == {"attention=mha": 10, "attention=mqa": 10}


def all_of(found, key, by=None):
    return {arm.label: [*arm.runs, *arm.failed] for arm in group(found, by, ignore=(key,))}


def test_a_setting_by_its_short_name():
    made = [memory_run({}, {"model.attention.reach.window": w}, loss=2.0 + abs(w - 32) / 100) for w in (16, 32, 64)]
    groups = all_of(made, "attention.reach.window")
    assert [len(of) for of in groups.values()] == [3]
    (arm,) = analyse(groups, "attention.reach.window").arms
    assert (arm.values, arm.optimum.value) == ([16, 32, 64], 32)
    assert [len(of) for of in all_of(made, "model.attention.reach.window").values()] == [3]
