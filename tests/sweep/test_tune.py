"""The bracket that every arm gets."""

import functools
import itertools

import pytest

from lmxexp import compose
from lmxexp.build import build
from lmxexp.cli.validate import check
from lmxexp.interfaces import ConfigError
from lmxexp.sweep.tune import Tune, bracket, expand, left_behind

LR = "optim.learning_rate"


@functools.cache
def cfg(*overrides):
    return compose(overrides)


@pytest.mark.parametrize(
    ("tune", "overrides", "values"),
    [
        (Tune(LR), [], [0.000111, 0.000333, 0.001, 0.003, 0.009]),
        (Tune(LR, trials=3, factor=10), ["optim.learning_rate=0.02"], [0.002, 0.02, 0.2]),
        (Tune(LR, trials=4, factor=4.0), [], [0.000125, 0.0005, 0.002, 0.008]),  # 2 and 4 times away on either side
        (Tune(LR, trials=2, factor=4.0), ["optim.learning_rate=1"], [0.5, 2.0]),
        (Tune(LR, values=[0.01, 0.001]), [], [0.001, 0.01]),
        (Tune("optim.weight_decay", trials=3), [], [0.0333, 0.1, 0.3]),
        (Tune("attention.reach.window", values=[16, 32]), ["attention=sliding"], [16, 32]),
        (Tune("model.attention.reach.window", values=[16, 32]), ["attention=sliding"], [16, 32]),
        (Tune("train.max_grad_norm", values=[0.5, 1.0]), ["train.max_grad_norm=null"], [0.5, 1.0]),
    ],
)
def test_values(tune, overrides, values):
    assert bracket(tune, cfg(*overrides)) == values


def test_bracket_is_spaced_by_the_factor():
    values = bracket(Tune(LR, trials=7, factor=2.5), cfg())
    assert values[3] == 0.001
    for a, b in itertools.pairwise(values):
        assert b / a == pytest.approx(2.5, rel=0.01)


@pytest.mark.parametrize(
    ("tune", "overrides", "message"),
    [
        (Tune("optim.lr"), [], "tune.key=optim.lr is not in the configuration: name a setting"),
        (Tune("optimizer.lr", values=[1.0, 2.0]), [], "tune.key=optimizer.lr is not in the configuration"),
        (Tune("attention"), [], "tune.key=attention is a group of kinds"),
        (Tune("optim"), [], "tune.key=optim is a mapping, no positive number"),
        (Tune("train.precision"), [], "tune.key=train.precision is auto, no positive number"),
        (Tune("train.compile"), [], "tune.key=train.compile is true, no positive number"),
        (Tune("train.memory_limit_gb"), [], "tune.key=train.memory_limit_gb is null, no positive number, which no"),
        (Tune("optim.weight_decay"), ["optim.weight_decay=0.0"], "is 0.0, no positive number"),
        (Tune("train.batch_size"), [], "tune.key=train.batch_size is 16, a whole number, which no factor can spread"),
        (Tune("model.d_ff", values=[64, 96]), ["model=mamba"], "tune.key=model.d_ff: nothing in this run reads it"),
        (Tune(LR, factor=1.0001), [], "tune.factor=1.0001 puts values together"),
    ],
)
def test_keys_that_cannot_be_tuned(tune, overrides, message):
    with pytest.raises(ConfigError, match=f"^{message}|{message}"):
        bracket(tune, cfg(*overrides))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 1}, "tune.trials=1 must be at least 2"),
        ({"factor": 1}, "tune.factor=1 must be above 1"),
        ({"factor": float("inf")}, "tune.factor=inf must be above 1"),
        ({"values": [0.1]}, "tune.values=.0.1. must be at least 2 different values"),
        ({"values": [0.1, 0.1]}, "must be at least 2 different values"),
        ({"values": [0.0, 0.1]}, "must be positive numbers"),
        ({"values": [0.2, float("nan")]}, "must be positive numbers"),
        ({"key": None, "values": [0.1, 0.2]}, "tune.values=.0.1,0.2. would be ignored: name the setting"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        Tune(**{"key": LR, **settings})


def test_every_point_at_every_value():
    points = [["attention=mha", "seed=1"], ["attention=gqa", "seed=1"]]
    assert expand(points, Tune(LR), [1e-05, 0.003]) == [
        ["attention=mha", "seed=1", "optim.learning_rate=1e-05"],
        ["attention=mha", "seed=1", "optim.learning_rate=0.003"],
        ["attention=gqa", "seed=1", "optim.learning_rate=1e-05"],
        ["attention=gqa", "seed=1", "optim.learning_rate=0.003"],
    ]
    assert expand([[]], Tune("attention.reach.window"), [16]) == [["attention.reach.window=16"]]


@pytest.mark.parametrize("value", [1e-05, 3.33e-07, 0.000111, 2500000.0, 16])
def test_what_is_added_is_what_is_composed(value):
    (line,) = expand([["attention=mha"]], Tune(LR), [value])
    composed = compose(line)
    assert composed.optim.learning_rate == value
    check(composed, line)


@pytest.mark.parametrize(
    ("key", "override"),
    [
        (LR, "optim.learning_rate=0.1"),
        (LR, "++optim.learning_rate=0.1"),
        (LR, "optim={learning_rate: 0.1}"),
        ("attention.reach.window", "model.attention.reach.window=3"),
        ("model.attention.reach.window", "attention.reach.window=3"),
    ],
)
def test_a_point_that_sets_the_key_itself(key, override):
    with pytest.raises(ConfigError, match="gives every arm the same values of it, so no point can set it"):
        expand([["attention=mha"], ["attention=gqa", override]], Tune(key), [1.0])


def test_other_overrides_are_none_of_its_business():
    # A choice of the whole group brings a learning rate of its own, which the bracket replaces.
    points = [["optim=lion", "optim.weight_decay=0.1", "optim={weight_decay: 0.2}", "optim.learning_rates=1"]]
    assert expand(points, Tune(LR), [0.1]) == [[*points[0], "optim.learning_rate=0.1"]]


@pytest.mark.parametrize(
    ("overrides", "key", "left"),
    [
        (["optim=adamw"], LR, {}),
        (["optim=muon"], LR, {"optim.adamw.learning_rate": 0.001}),
        (["optim=dion"], LR, {"optim.adamw.learning_rate": 0.001}),
        (["optim=muon"], "optim.weight_decay", {}),
        (["optim=muon"], "optim.adamw.learning_rate", {}),
        (["optim=muon", "optim.adamw.learning_rate=${..learning_rate}"], LR, {}),
        (["optim=muon_moonlight"], LR, {}),
        (["optim=normuon"], LR, {}),
        (["optim=cautious"], LR, {}),
        (["optim=cautious", "optim@optim.inner=muon"], LR, {"optim.inner.adamw.learning_rate": 0.001}),
    ],
)
def test_learning_rates_that_a_bracket_leaves_as_they_are(overrides, key, left):
    assert left_behind(key, cfg(*overrides)) == left


def test_built_from_a_node():
    node = {"_target_": "lmxexp.sweep.tune.Tune", "key": LR, "values": None, "trials": 5, "factor": 3.0}
    assert build(node) == Tune(LR)
    assert build({**node, "key": None}) == Tune()
