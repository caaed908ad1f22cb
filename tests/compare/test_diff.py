"""The difference of two configurations."""

import pytest

from lmxexp.compare.axes import ABSENT, as_written
from lmxexp.compare.diff import differences, lines
from tests.compare.made_runs import memory_run

A = memory_run({"attention": "mha"}, seed=1)


def essential(choices=None, settings=None, seed=1):
    return differences(A, memory_run({"attention": "mha"} | (choices or {}), settings, seed=seed))


def test_a_run_and_itself():
    assert essential() == []
    assert lines(A, A) == [f"{A.name} and {A.name} are configured alike"]


@pytest.mark.parametrize(
    ("choices", "settings", "seed", "expected"),
    [
        ({}, {}, 2, [("seed", 1, 2)]),  # data.seed is a copy of it
        ({}, {"data.seed": 5}, 1, [("data.seed", 1, 5)]),
        ({}, {"optim.learning_rate": 0.003}, 1, [("optim.learning_rate", 0.001, 0.003)]),
        ({}, {"model.d_ff": 352}, 1, [("model.d_ff", None, 352)]),  # copied to model.ffn and into the net
        ({}, {"train.steps": 7, "schedule.steps": 7}, 1, [("train.steps", 200, 7)]),
        ({}, {"data.path": "b.txt"}, 1, [("data.path", ABSENT, "b.txt")]),
        ({}, {"name": "other", "tags": ["x"], "train.log_every": 3}, 1, []),
        ({}, {"loss.z_loss": False}, 1, [("loss.z_loss", 0.0, False)]),  # 0 and false are not the same
    ],
)
def test_settings_without_their_copies(choices, settings, seed, expected):
    assert essential(choices, settings, seed) == expected


def test_a_choice_comes_first_and_its_class_is_not_told():
    found = essential({"attention": "gqa"}, {"model.d_ff": 352})
    assert found[0] == ("attention", "mha", "gqa")
    assert ("model.attention.n_kv_heads", ABSENT, 2) in found
    assert ("model.d_ff", None, 352) in found
    assert not any("_target_" in key or "net" in key for key, _, _ in found)


def test_everything():
    other = memory_run({"attention": "gqa"}, {"name": "other"}, seed=2)
    found = differences(A, other, everything=True)
    flat = {key: (A.flat.get(key, ABSENT), other.flat.get(key, ABSENT)) for key in {*A.flat, *other.flat}}
    expected = {key.removeprefix("choice."): pair for key, pair in flat.items() if pair[0] != pair[1]}
    assert {key: (x, y) for key, x, y in found} == expected
    assert {"name", "data.seed", "model.attention._target_", "model.net.blocks.layer.mixer._target_"} <= set(expected)


def test_it_is_the_same_from_the_other_side():
    other = memory_run({"attention": "gqa"}, {"model.d_ff": 352, "optim.betas": [0.9, 0.99]}, seed=2)
    assert sorted((k, y, x) for k, x, y in differences(A, other)) == sorted(differences(other, A))


def test_as_a_table():
    other = memory_run({"attention": "gqa"}, {"optim.betas": [0.9, 0.99], "loss.z_loss": None}, seed=1)
    table = lines(A, other)
    assert [line.split() for line in table[:-1]] == [
        [A.name, other.name],
        ["attention", "mha", "gqa"],
        ["loss.z_loss", "0", "null"],
        ["optim.betas", "[0.9,0.95]", "[0.9,0.99]"],
        ["model.attention.n_kv_heads", "-", "2"],
    ]
    starts = {line.index(word) for line, word in zip(table, (A.name, "mha", "0 ", "[0.9,0.95]", "- "), strict=False)}
    assert len(starts) == 1  # a column
    hidden = len(differences(A, other, everything=True)) - 4
    assert table[-1].startswith(f"{hidden} more in names, paths, logging and copies of these")
    named = lines(A, memory_run({"attention": "mha"}, {"name": "other"}))
    assert [line.split(";")[0] for line in named] == [
        f"{A.name} and {A.name} are configured alike",
        "1 more in names, paths, logging and copies of these",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (True, "true"), (0.001, "0.001"), (1.0, "1"), (0.1234567891, "0.1234567891"), (1e-8, "1e-08"),
     ([1, [None, "a"]], "[1,[null,a]]"), ((0.5, 2), "[0.5,2]"), (ABSENT, "-"), ("text", "text"),
     (12345678, "12345678")],
)  # fmt: skip
def test_values_are_written_as_on_the_command_line(value, text):
    assert as_written(value) == text
