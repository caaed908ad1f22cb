"""Runs on two processes, as a user starts them."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from lmxexp import compose, run
from lmxexp.logger.jsonl import read_metrics
from lmxexp.train import checkpoint
from tests.end_to_end.processes import lmxexp, small
from tests.parallel.launch import launch, started
from tests.parallel.test_worlds import assert_close

CPU = ["model.n_layers=1", "callback=[evaluate,checkpoint]"]


def overrides(directory, *own):
    return [o for o in small(directory, *CPU, *own) if not o.startswith("callback.sample")]


def wait_for(directory, n_steps, process):
    while (
        sum(len(file.read_text().splitlines()) for file in directory.glob("outputs/runs/*/*/metrics.jsonl")) < n_steps
    ):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def ranks_of(process):
    """The pids of the processes that `mlx.launch` started, by rank."""
    pids = [
        int(pid)
        for children in Path(f"/proc/{process.pid}/task").glob("*/children")  # of each of its threads
        for pid in children.read_text().split()
    ]
    rank = lambda pid: re.search(r"MLX_RANK=(\d+)", Path(f"/proc/{pid}/environ").read_text())[1]
    return sorted(pids, key=rank)


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the processes in /proc")


@needs_proc
def test_a_rank_that_is_killed_ends_the_run_and_one_process_goes_on_with_it(tmp_path):
    own = overrides(tmp_path, "schedule=constant", "schedule.warmup_steps=2", "logger=[console,jsonl]")
    with started(2, "-m", "lmxexp", *own, "train.steps=2000", cwd=tmp_path) as process:
        wait_for(tmp_path, 6, process)
        os.kill(ranks_of(process)[1], signal.SIGKILL)
        began = time.monotonic()
        out = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 30
    [run_dir] = tmp_path.glob("outputs/runs/*/*")
    assert out.count("2 processes (ring), train.parallel=data: 2 of train.batch_size=4 sequences each") == 1, out
    assert out.count("lmxexp: error:") == 1, out
    assert f"rank 1 of 2 died; the others were ended; go on with resume={run_dir}" in out
    record = json.loads((run_dir / "run.json").read_text())
    assert record["world"] == {"size": 2, "backend": "ring", "parallel": "data"}
    assert record["status"] == "failed"

    n_steps = checkpoint.newest(run_dir / "checkpoints").name.partition("_")[2]
    steps = f"train.steps={int(n_steps) + 2}"
    done = lmxexp(f"resume={run_dir}", steps, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_close(run(compose([*own, steps]), tmp_path / "alone").run_dir, run_dir)


@needs_proc
@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    with started(2, "-m", "lmxexp", *overrides(tmp_path, "train.steps=2000"), cwd=tmp_path) as process:
        wait_for(tmp_path, 5, process)
        os.kill(ranks_of(process)[1], signal.SIGTERM)
        out = process.communicate(timeout=60)[0]
    assert "lmxexp: error:" not in out, out
    [run_dir] = tmp_path.glob("outputs/runs/*/*")
    assert json.loads((run_dir / "run.json").read_text())["status"] == "stopped"
    saved = checkpoint.read(checkpoint.newest(run_dir / "checkpoints"))
    waits_for_its_line = saved.state["unlogged"] is not None  # stopped before the step's evaluation was through
    assert saved.step == read_metrics(run_dir / "metrics.jsonl")[-1]["step"] + waits_for_its_line


@pytest.mark.parametrize(
    ("own", "mend"),
    [
        pytest.param(
            ["train.batch_size=6"], "train.batch_size=6 must be a multiple of 4", marks=pytest.mark.exhaustive
        ),
        pytest.param(["train.parallel=fsdp"], "ring cannot add gradients up into parts", marks=pytest.mark.slow),
        pytest.param(
            ["train.parallel=fsdp", "optim=muon"],
            "it computes with whole parameters",
            marks=pytest.mark.exhaustive,
        ),
        pytest.param(["train.paralel=fsdp"], "did you mean train.parallel?", marks=pytest.mark.exhaustive),
        pytest.param(
            ["--multirun", "seed=1,2"], "mlx.launch gives all its devices to one run", marks=pytest.mark.exhaustive
        ),
    ],
)
def test_what_cannot_work_is_said_once(own, mend, tmp_path):
    out = launch(2, "-m", "lmxexp", *overrides(tmp_path), *own, cwd=tmp_path)
    assert out.count("lmxexp: error:") == 1, out
    assert mend in out


def test_one_process_has_nothing_to_share(tmp_path):
    done = lmxexp(*overrides(tmp_path, "train.parallel=fsdp"), cwd=tmp_path)
    assert done.returncode == 1
    assert "start several with mlx.launch" in done.stderr
