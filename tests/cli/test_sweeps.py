"""What is said of a sweep on the command line."""

import pytest

from lmxexp.cli import sweeps
from lmxexp.interfaces import ConfigError


def test_a_name_is_a_directory(monkeypatch):
    monkeypatch.delenv("LMXEXP_OUTPUTS", raising=False)
    line = ["seed=1,2", "sweep=first_try", "sweep.on_failure=stop", "model.sweep=3"]
    assert sweeps.named(line) == [line[0], "hydra.sweep.dir=outputs/sweeps/first_try", *line[2:]]
    monkeypatch.setenv("LMXEXP_OUTPUTS", "/elsewhere")
    assert sweeps.named(["sweep=a-1"]) == ["hydra.sweep.dir=/elsewhere/sweeps/a-1"]


@pytest.mark.parametrize("name", ["", "a/b", "..", ".", "a b", "a,b", "~"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(ConfigError, match=r"for a path say hydra\.sweep\.dir=DIR"):
        sweeps.named([f"sweep={name}"])


@pytest.mark.parametrize(
    "text",
    [
        "sweep=x",
        "sweep.on_failure=stop",
        "match=params",
        "match.reference=attention=mha",
        "tune=optim.learning_rate",
        "tune.trials=3",
        "hydra/launcher=subprocess",
        "hydra.launcher.n_jobs=2",
        "hydra/sweeper=halving",
        "hydra.sweep.dir=x",
        "+hydra.sweeper.params={a: '1,2'}",
    ],
)
def test_a_single_run_does_not_take_what_is_about_a_sweep(text):
    with pytest.raises(ConfigError, match=r"add --multirun \(or -m\)") as error:
        sweeps.refuse_alone(["seed=1", text])
    assert text in str(error.value)
    assert "seed=1" not in str(error.value)


def test_what_is_about_a_run_is_left_alone():
    sweeps.refuse_alone(["seed=1", "hydra.run.dir=x", "model.matching=2", "tuned=1", "sweeper=2", "hydra.job.name=x"])


def test_what_is_equal_in_all_points_is_in_no_name():
    said = sweeps.directory_names(["attention=mha,gqa", "train.steps=5", "data.path=/a/b,/c/d", "seed=range(3)"])
    assert said == "hydra.job.config.override_dirname.exclude_keys=['data.path','resume','train.steps']"
