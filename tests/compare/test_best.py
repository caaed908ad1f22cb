import pytest

from lmxexp.compare.arms import group
from lmxexp.compare.best import best_of_each, tuned_key
from lmxexp.compare.comparison import compare, compare_runs
from lmxexp.compare.measure import measured
from lmxexp.compare.read import find_runs
from lmxexp.compare.tuned import analyse
from lmxexp.interfaces import ConfigError
from tests.compare.made_runs import make_sweep, memory_run

LR = "optim.learning_rate"


def best(runs, higher=False):
    arms = [measured(arm, "eval/loss") for arm in group(runs, ignore=(LR,))]
    return best_of_each(arms, analyse({a.label: [*a.runs, *a.failed] for a, _ in arms}, LR, "eval/loss", higher))


def at(rate, losses, kind="mha", **others):
    return [memory_run({"attention": kind}, {LR: rate}, seed=s, loss=v, **others) for s, v in enumerate(losses)]


def test_an_arm_is_its_best_value_alone():
    """With the failures at that value, and no others."""
    runs = [*at(0.001, [3.0, 3.2]), *at(0.003, [2.9, 3.1]), *at(0.01, [9.0], status="diverged")]
    ((arm, values),) = best(runs)
    assert arm.label == f"llama-gqa at {LR}=0.003" or arm.label.endswith(f"at {LR}=0.003")
    assert list(values.values()) == [2.9, 3.1]
    assert [run.flat[LR] for run in arm.runs] == [0.003, 0.003]
    assert arm.failed == []
    ((worst, _),) = best(runs, higher=True)
    assert worst.label.endswith("at optim.learning_rate=0.001")


def test_survivors_are_no_fair_competitors():
    runs = [
        *at(0.001, [3.0, 3.2]),
        *at(0.01, [1.0]),
        memory_run({"attention": "mha"}, {LR: 0.01}, seed=1, status="failed"),
    ]
    ((arm, _),) = best(runs)
    assert arm.label.endswith("=0.001")


def test_the_table_and_the_tuning_name_the_same_optimum(tuned):
    for row in tuned.rows:
        label, _, value = row.arm.label.partition(f" at {LR}=")
        (arm,) = [arm for arm in tuned.tuning.arms if arm.label == label]
        assert arm.optimum.value == float(value)
        assert row.sample.mean == pytest.approx(arm.optimum.mean)


def test_an_arm_that_never_ended_well_stays_as_it_is():
    runs = [*at(0.001, [3.0, 3.2]), *at(0.001, [9.0, 9.0], "gqa", status="diverged")]
    comparison = compare_runs(runs, tune=LR)
    assert [row.arm.label for row in comparison.rows] == [f"attention=mha at {LR}=0.001", "attention=gqa"]
    assert comparison.rows[1].verdict.text == "no result (2 of 2 diverged)"


def test_the_key(tmp_path):
    points = [{"settings": {LR: rate}, "loss": rate} for rate in (0.001, 0.003)]
    for name, key in (("a", LR), ("b", "optim.eps"), ("c", None)):
        make_sweep(tmp_path / name, points, tune={"key": key, "values": []} if key else None)
    assert compare([tmp_path / "c"]).tuning is None
    assert compare([tmp_path / "a"]).tuning.key == LR
    with pytest.raises(ConfigError, match=r"tuned in different keys \(optim.eps, optim.learning_rate\): .* --tune KEY"):
        compare([tmp_path / "a", tmp_path / "b"])
    assert compare([tmp_path / "a", tmp_path / "b"], tune=LR).tuning.key == LR
    runs = find_runs([tmp_path / "c"])
    assert tuned_key(runs, [], LR) == LR
    with pytest.raises(ConfigError, match=r"--tune optim.learning_rat: no run has .* did you mean optim.learning_rate"):
        tuned_key(runs, [], "optim.learning_rat")


def test_a_choice_is_no_setting_to_tune():
    with pytest.raises(
        ConfigError, match=r"--tune attention: a curve .* has mha: leave it out, and each value makes an arm"
    ):
        compare_runs(at(0.001, [3.0, 3.2]), tune="attention")


def test_other_differences_inside_an_arm_count_in_its_optimum():
    """By size, over learning rates and two kinds of attention: the best mean over both kinds."""
    runs = []
    for rate, (mha, gqa) in {0.001: (2.0, 4.0), 0.003: (2.9, 2.9)}.items():
        for kind, loss in (("mha", mha), ("gqa", gqa)):
            runs += at(rate, [loss, loss + 0.1], kind)
    comparison = compare_runs(runs, by=["size"], tune=LR)
    assert comparison.arms[0].label == f"size=tiny at {LR}=0.003"
    assert (comparison.rows[0].sample.n, comparison.rows[0].sample.mean) == (2, pytest.approx(2.95))
