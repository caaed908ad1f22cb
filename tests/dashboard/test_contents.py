from __future__ import annotations

import itertools

import pytest

from lmxexp.dashboard.contents import read
from lmxexp.interfaces import ConfigError
from tests.dashboard.conftest import WANDB


def _grid(*keys):
    return [" ".join(words) for words in itertools.product(*keys)]


ATTENTION = ("attention=mha", "attention=gqa")
SEEDS = ("seed=1", "seed=2", "seed=3")


def test_where_the_runs_are(make_sweep):
    contents = read(make_sweep(_grid(ATTENTION, SEEDS)))
    assert (contents.name, contents.project, contents.entity, contents.n_points) == ("shapes", "proj", None, 6)
    assert contents.groups == ["shapes"]


def test_the_command_line_goes_first(make_sweep):
    sweep = make_sweep(["seed=1"], wandb=[WANDB | {"entity": "team"}])
    assert read(sweep).entity == "team"
    contents = read(sweep, "other", "someone")
    assert (contents.project, contents.entity) == ("other", "someone")


def test_the_group_is_what_the_logger_sent(make_sweep):
    sweep = make_sweep(["seed=1", "seed=2"], wandb=[WANDB | {"group": "mine"}, WANDB], name="s" * 200)
    assert read(sweep).groups == ["mine", "s" * 128]


def test_choices_and_settings_by_their_keys_in_the_configuration(make_sweep):
    sweep = make_sweep(
        _grid(ATTENTION, ("attention@ssm=mamba2", "attention@ssm=gla"), ("+optim.betas=[0.9,0.95]", "train.steps=7")),
        adjusted=[{}, {"model.d_ff": 352}],
    )
    keys = {v.label: v.key for v in read(sweep).varied}
    assert keys == {
        "attention": "choices.attention",
        "attention@ssm": "choices.attention@ssm",
        "optim.betas": "optim.betas",
        "train.steps": "train.steps",
        "model.d_ff": "model.d_ff",
    }


def test_the_long_form_of_a_choice(make_sweep):
    sweep = make_sweep(["model/norm=rmsnorm model/attention@model.ssm=gla", "model/norm=layernorm"])
    assert [v.key for v in read(sweep).varied] == ["choices.norm", "choices.attention@ssm"]


def test_curves_are_separated_by_all_but_the_seeds(make_sweep):
    rates = ("optim.learning_rate=0.001", "optim.learning_rate=0.01")
    contents = read(make_sweep(_grid(ATTENTION, rates, SEEDS, ("data.seed=1", "data.seed=2"))))
    assert [v.label for v in contents.grouped] == ["attention", "optim.learning_rate"]
    assert [v.label for v in contents.varied] == ["attention", "optim.learning_rate", "seed", "data.seed"]
    assert not contents.only_seeds


def test_what_was_solved_for_does_not_separate_curves(make_sweep):
    sweep = make_sweep(_grid(ATTENTION, SEEDS), adjusted=[*[{}] * 3, *[{"model.d_ff": 352}] * 3])
    contents = read(sweep)
    assert [v.label for v in contents.grouped] == ["attention"]
    assert [v.label for v in contents.varied] == ["attention", "seed", "model.d_ff"]


def test_numbers_that_a_search_drew_do_not_separate_curves(make_sweep):
    contents = read(make_sweep([f"attention=mha optim.learning_rate=0.00{n}" for n in range(1, 9)]))
    assert [v.label for v in contents.grouped] == ["attention"]


def test_a_choice_separates_even_where_each_point_has_its_own(make_sweep):
    assert [v.label for v in read(make_sweep(list(ATTENTION))).grouped] == ["attention"]


def test_seeds_alone(make_sweep):
    contents = read(make_sweep(list(SEEDS)))
    assert contents.grouped == []
    assert contents.only_seeds


@pytest.mark.parametrize(
    ("values", "log"),
    [
        (("0.001", "0.01"), True),
        (("0.001", "0.009"), False),
        (("0", "1"), False),
        (("a", "b"), False),
        (("1e-4",), False),
    ],
)
def test_logarithmic_axes(values, log, make_sweep):
    (varied,) = read(make_sweep([f"optim.learning_rate={v}" for v in values])).varied
    assert varied.log == log


def test_points_that_have_not_started_count_by_their_words(make_sweep):
    contents = read(make_sweep(list(ATTENTION), started=1))
    assert contents.n_points == 2
    assert [v.label for v in contents.varied] == ["attention"]


def test_what_is_no_sweep(tmp_path):
    (tmp_path / "home").mkdir()
    with pytest.raises(ConfigError, match=r"home has no sweep\.json: give the directory of a sweep"):
        read(tmp_path / "home")
    with pytest.raises(ConfigError, match="nowhere is no directory"):
        read(tmp_path / "nowhere")


def test_before_the_first_point(make_sweep):
    with pytest.raises(ConfigError, match="no point has started yet"):
        read(make_sweep(list(ATTENTION), started=0))


@pytest.mark.parametrize("wandb", [None, WANDB | {"mode": "disabled"}])
def test_runs_that_are_not_at_wandb(wandb, make_sweep):
    sweep = make_sweep(list(ATTENTION), wandb=[wandb])
    with pytest.raises(ConfigError, match=r"its runs were not logged to W&B.*--project"):
        read(sweep)
    contents = read(sweep, "sent-later")
    assert (contents.project, contents.groups) == ("sent-later", ["shapes"])


@pytest.mark.parametrize("key", ["project", "entity"])
def test_runs_in_several_places(key, make_sweep):
    sweep = make_sweep(list(ATTENTION), wandb=[WANDB | {key: "a"}, WANDB | {key: "b"}])
    with pytest.raises(ConfigError, match=rf"{key} a, b.*choose by --{key}"):
        read(sweep)
    assert getattr(read(sweep, **{key: "b"}), key) == "b"
