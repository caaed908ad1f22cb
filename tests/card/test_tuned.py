"""A card of a sweep that tuned a setting."""

import pytest

from lmxexp.card.read import Spread, read
from lmxexp.interfaces import ConfigError
from tests.card.sweep import Sweep, measured

KEY = "optim.learning_rate"
SAID = f"every score is that of the best {KEY}, of each mixer and task"


@pytest.fixture
def sweep(tmp_path):
    sweep = Sweep(tmp_path / "my_card")
    sweep.tune = {"key": KEY, "values": [0.001, 0.01, 0.1]}
    return sweep


def add(sweep, mixer, task, by_rate, **more):
    for rate, value in by_rate.items():
        sweep.add(mixer, task, value, config={"optim": {"learning_rate": rate}}, **more)


def test_each_mixer_counts_at_its_best_value_of_each_task(sweep):
    """Accuracies are better when larger, losses when smaller."""
    add(sweep, "mha", "lm", {0.001: 3.0, 0.01: 2.0, 0.1: 4.0}, speeds=measured())
    add(sweep, "mha", "copying", {0.001: 0.1, 0.01: 0.9, 0.1: 0.5})
    add(sweep, "linear", "lm", {0.001: 3.5, 0.01: 2.5, 0.1: 2.75}, speeds=measured(2.0))
    add(sweep, "linear", "copying", {0.001: 0.25, 0.01: 0.5, 0.1: 0.25})
    card = read([sweep.path])
    scores = {m.label: {task: s.mean for task, s in m.scores.items()} for m in card.mixers}
    assert scores == {"mha": {"lm": 2.0, "copying": 0.9}, "linear": {"lm": 2.5, "copying": 0.5}}
    assert card.notes == [SAID]


def test_seeds_are_averaged_before_the_best_is_chosen(sweep):
    for seed, by_rate in {1: {0.001: 0.9, 0.01: 0.7, 0.1: 0.1}, 2: {0.001: 0.1, 0.01: 0.6, 0.1: 0.1}}.items():
        add(sweep, "mha", "copying", by_rate, seed=seed, speeds=measured())
    assert read([sweep.path]).mixers[0].scores["copying"] == Spread(pytest.approx(0.65), 0.6, 0.7, 2)


def test_a_best_value_at_the_end_of_the_bracket_is_said(sweep):
    add(sweep, "mha", "lm", {0.001: 2.0, 0.01: 3.0, 0.1: 4.0}, speeds=measured())
    add(sweep, "mha", "copying", {0.001: 0.1, 0.01: 0.2, 0.1: 0.5})
    assert read([sweep.path]).notes == [
        SAID,
        f"mha, task=lm: the best {KEY} is the lowest that was tried; beyond may be better",
        f"mha, task=copying: the best {KEY} is the highest that was tried; beyond may be better",
    ]


def test_trials_that_diverge_are_part_of_it_and_those_that_fail_are_said(sweep):
    add(sweep, "mha", "copying", {0.001: 0.1, 0.01: 0.9}, speeds=measured())
    add(sweep, "mha", "copying", {0.1: None}, status="diverged", error="nan")
    card = read([sweep.path])
    assert (card.mixers[0].scores["copying"].mean, card.notes) == (0.9, [SAID])
    add(sweep, "mha", "copying", {1.0: None}, status="killed", error="signal 9")
    assert read([sweep.path]).notes == [SAID, "mha, task=copying, seed=1: killed: signal 9"]


def test_nothing_but_what_was_tuned_may_differ(sweep):
    add(sweep, "mha", "lm", {0.001: 2.0, 0.01: 3.0})
    sweep.tune = None
    sweep.add("linear", "lm", 1.0, config={"optim": {"learning_rate": 0.01}})
    with pytest.raises(ConfigError, match=f"--by attention,{KEY} tells them apart"):
        read([sweep.path])
