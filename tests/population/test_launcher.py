"""``hydra/launcher=population`` as real processes, against the same sweep one after the other."""

import json

import pytest

from lmxexp.logger.jsonl import read_metrics
from lmxexp.logger.wandb_file import read_wandb_file
from tests.end_to_end.processes import lmxexp, small
from tests.population.close import assert_run_as_alone, assert_sweep_as_alone, on_a_gpu
from tests.pythonpath import PYTHONPATH

ENV = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH}
TOGETHER = ["hydra/launcher=population", "hydra.launcher.force=true"]


@pytest.fixture
def sweep(tmp_path):
    def run(name, *overrides, mode="disabled"):
        env = {**ENV, "WANDB_MODE": mode}
        done = lmxexp("-m", *small(tmp_path, *overrides), f"sweep={name}", cwd=tmp_path, **env)
        return done, tmp_path / "outputs" / "sweeps" / name

    return run


def members(directory):
    """By the name of their directories, in how many each was trained."""
    records = {path.parent.name: json.loads(path.read_text()) for path in directory.glob("*_*/run.json")}
    return {name: record.get("population", 1) for name, record in sorted(records.items())}


@pytest.mark.parametrize(
    "points",
    [
        ["optim.learning_rate=1e-3,1e-2", "seed=1,2"],
        ["optim=muon", "schedule=cosine,wsd", "model.init.std=0.02,0.1"],
        ["hydra/sweeper=halving", "hydra.sweeper.factor=2", "optim.learning_rate=1e-4,1e-3,3e-3,1e-2"],
    ],
    ids=["seeds and rates", "schedules and inits", "halving"],
)
def test_each_point_is_what_it_is_alone(sweep, points):
    """Weights, optimizer and random state, metrics and samples, bit for bit on the CPU. Adam and Muon make full steps
    of what is rounding in bf16 gradients, so on a GPU it is told by fp32 ones."""
    settings = ["train.n_micro=1", "train.precision=fp32", *points]
    done, alone = sweep("alone", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    done, together = sweep("together", *settings, *TOGETHER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_sweep_as_alone(alone, together)
    assert set(members(together).values()) == ({4} if "halving" not in str(points) else {1, 2, 4})
    assert set(members(alone).values()) == {1}


@pytest.mark.slow
def test_processes_share_the_members_out(sweep):
    settings = ["train.n_micro=1", "optim.learning_rate=1e-3,1e-2", "seed=1,2,3"]
    done, alone = sweep("alone", *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    done, together = sweep("together", *settings, *TOGETHER, "hydra.launcher.n_jobs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_sweep_as_alone(alone, together)
    assert set(members(together).values()) == {3}
    pids = {file.read_text() for file in together.glob("*/.lock")}
    assert len(pids) == 2


def test_what_does_not_fit_runs_alone_and_that_is_said(sweep):
    done, directory = sweep("s", "train.n_micro=1", "attention=gqa,sliding", "seed=1,2", *TOGETHER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(members(directory).values()) == {2}
    done, directory = sweep("t", "train.n_micro=1", "optim=adamw,lion", *TOGETHER)
    assert set(members(directory).values()) == {1}
    assert (
        "one after the other, as no other point has their shapes and structure: optim=adamw, optim=lion" in done.stderr
    )


def test_numbers_that_no_step_takes_as_arrays_run_alone_and_that_is_said(sweep):
    done, directory = sweep("s", "train.n_micro=1", "optim=muon", "optim.ns_steps=4,5", *TOGETHER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(members(directory).values()) == {1}
    assert "one after the other, as no step fits all (" in done.stderr
    done, alone = sweep("alone", "train.n_micro=1", "optim=muon", "optim.ns_steps=4,5")
    assert_sweep_as_alone(alone, directory)


@pytest.mark.skipif(on_a_gpu(), reason="this is no CPU")
def test_on_a_cpu_points_run_one_after_the_other_and_that_is_said(sweep):
    done, directory = sweep("s", "train.n_micro=1", "seed=1,2", "hydra/launcher=population")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(members(directory).values()) == {1}
    assert "on a CPU points are no faster together" in done.stderr


def test_each_is_a_w_and_b_run_of_its_own(sweep, tmp_path):
    """Several are open in one process: the rows of each are its own, to the end."""
    done, together = sweep("s", "train.n_micro=1", "seed=1,2,3", "logger=[jsonl,wandb]", *TOGETHER, mode="offline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(members(together).values()) == {3}
    found = {}
    for run in sorted(together.glob("*_*")):
        [file] = run.glob("wandb/*/*.wandb")
        logged = read_wandb_file(file)
        assert logged.exit_code == 0
        assert (logged.run["name"], logged.run["group"]) == (run.name.partition("_")[2], "s")
        losses = [row["train/loss"] for row in logged.history if "train/loss" in row]
        assert losses == [line["train/loss"] for line in read_metrics(run / "metrics.jsonl") if "train/loss" in line]
        found[logged.run["run_id"]] = losses
    assert len(found) == 3
    assert len({tuple(losses) for losses in found.values()}) == 3


def test_no_more_than_so_many(sweep):
    done, directory = sweep("s", "train.n_micro=1", "seed=range(5)", *TOGETHER, "hydra.launcher.max_members=2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(members(directory).values()) == [1, 2, 2, 2, 2]
    done, _ = sweep("t", "seed=1,2", *TOGETHER, "hydra.launcher.max_members=0")
    assert done.returncode == 1
    assert "hydra.launcher.max_members=0 must be at least 1" in done.stderr


def test_one_that_diverges_is_a_row_and_the_others_are_what_they_were(sweep):
    points = ["train.n_micro=1", "optim=sgd", "optim.learning_rate=1e-2,1e30,1e-1"]
    done, alone = sweep("alone", *points)
    assert done.returncode == 1
    done, together = sweep("together", *points, *TOGETHER)
    assert done.returncode == 1
    rows = [(directory / "points.csv").read_text().replace(directory.name, "S") for directory in (alone, together)]
    assert on_a_gpu() or rows[0] == rows[1]
    assert all("diverged" in table for table in rows)
    for run in sorted(alone.glob("*_*")):
        if "1e+30" not in run.name and "1e30" not in run.name:
            assert_run_as_alone(run, together / run.name)


def test_more_points_later_are_trained_by_themselves(sweep):
    done, directory = sweep("s", "train.n_micro=1", "seed=1,2", *TOGETHER)
    done, directory = sweep("s", "train.n_micro=1", "seed=1,2,3,4", *TOGETHER)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(members(directory).values()) == [2, 2, 2, 2]
    done, alone = sweep("alone", "train.n_micro=1", "seed=1,2,3,4")
    assert_sweep_as_alone(alone, directory)


def test_a_signal_is_for_the_whole_sweep(sweep):
    """The first group stops with its checkpoints, and no other begins."""
    points = ["train.n_micro=1", "attention=gqa,sliding", "seed=1,2", *TOGETHER]
    stop = "+callback.stop={_target_:tests.population.stop_first.StopFirst,at:6}"
    done, directory = sweep("s", *points, stop)
    assert done.returncode == 143, done.stdout + done.stderr
    assert sorted(path.parent.name[:1] for path in directory.glob("*_*/run.json")) == ["0", "1"]
    assert all(path.exists() for i in (0, 1) for path in directory.glob(f"{i}_*/checkpoints"))
