"""Two real points of a sweep, one after another in one process, the first of which raises in the middle of training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmxexp import compose, run
from lmxexp.interfaces import RunInfo
from lmxexp.logger.wandb import Wandb
from lmxexp.logger.wandb_file import WandbFile, read_wandb_file
from lmxexp.train.trainer import Trainer

SMALL = [
    "debug=default",
    "callback=[evaluate,throughput,memory]",
    "logger=[jsonl,wandb]",
    "logger.wandb.mode=offline",
    "logger.wandb.project=two-points",
    "tags=[noon]",
]


@pytest.fixture(scope="module")
def two_points(tmp_path_factory: pytest.TempPathFactory) -> dict[str, WandbFile]:
    """What both left, by name."""
    folder = tmp_path_factory.mktemp("points")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setattr(Wandb, "start", _as_in_a_sweep(Wandb.start))
        with patch.context() as broken:
            broken.setattr(Trainer, "evaluate", _raise)
            with pytest.raises(RuntimeError, match="in the middle"):
                run(compose([*SMALL, "attention=mqa"]), folder / "mqa")
        assert run(compose([*SMALL, "attention=gqa"]), folder / "gqa").status == "ok"
        import wandb

        wandb.teardown()  # a run's file is complete a moment after finish; this waits for it
    return {name: _only_file(folder / name) for name in ("mqa", "gqa")}


def _as_in_a_sweep(start: Callable[..., None]) -> Callable[..., None]:
    def started(self: Wandb, info: RunInfo) -> None:
        name = f"attention={info.choices['attention']}"
        start(self, dataclasses.replace(info, group="attention-sweep", job_type="grid", name=name))

    return started


def _raise(self: Trainer) -> dict[str, float]:
    raise RuntimeError("in the middle")


def _only_file(run_dir: Path) -> WandbFile:
    (path,) = run_dir.glob("wandb/*run-*/*.wandb")
    return read_wandb_file(path)


def test_each_is_a_run_of_its_own(two_points):
    ids = {name: file.run.pop("run_id") for name, file in two_points.items()}
    assert ids["mqa"] != ids["gqa"]
    for name, file in two_points.items():
        assert file.run == {
            "project": "two-points",
            "entity": "",
            "group": "attention-sweep",
            "job_type": "grid",
            "name": f"attention={name}",
            "tags": ["noon"],
        }


def test_both_are_finished_and_the_one_that_raised_says_so(two_points):
    assert {name: file.exit_code for name, file in two_points.items()} == {"mqa": 1, "gqa": 0}
    assert two_points["mqa"].summary["summary/status"] == "failed"
    assert two_points["mqa"].summary["summary/error"] == "RuntimeError: in the middle"
    assert two_points["gqa"].summary["summary/status"] == "ok"


def test_each_has_its_own_steps_and_nothing_of_the_other(two_points):
    assert [row["_step"] for row in two_points["mqa"].history] == [1, 2]
    assert [row["_step"] for row in two_points["gqa"].history] == [1, 2, 3, 4, 5, 6]


def test_the_choices_stand_in_the_configuration_as_one_nested_key(two_points):
    for name, file in two_points.items():
        assert file.config["choices"]["attention"] == name
        assert file.config["choices"]["optim"] == "adamw"
        assert file.config["seed"] == 1
        assert file.config["optim"]["learning_rate"] > 0
