"""Which configurations go together."""

import pytest

import lmxexp
from lmxexp.population.grouping import groups
from lmxexp.sweep.prepare import resolved

SMALL = ["data=mqar", "data.vocab_size=32", "data.n_pairs=2", "train.seq_len=16"]


def grouped(*points):
    return groups([resolved(lmxexp.compose([*SMALL, *point])) for point in points])


@pytest.mark.parametrize(
    "other",
    [
        ["seed=2"],
        ["data.seed=3"],
        ["optim.learning_rate=0.5"],
        ["optim.weight_decay=0"],
        ["optim.betas=[0.5,0.5]"],
        ["schedule.warmup_steps=7"],
        ["schedule=wsd"],
        ["loss.z_loss=0.1"],
        ["model.init.std=0.3"],
        ["name=other"],
        ["tags=[a]"],
        ["logger=[]"],
    ],
    ids=str,
)
def test_together(other):
    assert grouped([], other) == [[0, 1]]


@pytest.mark.parametrize(
    "other",
    [
        ["model.d_model=64"],
        ["attention=mla"],
        ["model.dropout=0.1"],
        ["optim=lion"],
        ["train.steps=7"],
        ["train.batch_size=2"],
        ["train.log_every=1"],
        ["data.n_pairs=3"],
        ["train.precision=bf16"],
        ["callback=[evaluate]"],
    ],
    ids=str,
)
def test_apart(other):
    assert grouped([], other) == [[0], [1]]


def test_in_the_order_of_the_points():
    assert grouped(["seed=1"], ["attention=mla"], ["seed=2"], ["attention=mla", "seed=2"]) == [[0, 2], [1, 3]]


def test_those_that_pause_elsewhere_are_apart():
    config = resolved(lmxexp.compose(SMALL))
    assert groups([{**config, "sweep": {"until": 3}}, {**config, "sweep": {"until": 3}}, config]) == [[0, 1], [2]]
