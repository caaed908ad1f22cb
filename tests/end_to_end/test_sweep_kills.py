"""The whole sweep is killed, again and again at random moments; given again, the command comes to the same table."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.processes import assert_same_run, lmxexp, small

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
GRID = ["attention=gqa,sliding", "seed=1,2"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "how", "more"),
    [
        (20, "group", ["logger=[jsonl,wandb]"]),
        (5, "group", ["hydra/launcher=subprocess", "hydra.launcher.n_jobs=2"]),
        # Its points are left alone, and must not write beside those of the next command.
        (5, "parent", ["hydra/launcher=subprocess", "hydra.launcher.n_jobs=2"]),
        (5, "group", ["hydra/sweeper=halving", "hydra.sweeper.factor=2"]),
    ],
    ids=["in process", "subprocesses", "parent of subprocesses", "halving"],
)
def test_killed_at_random_moments(kills, how, more, tmp_path):
    command = ["-m", *small(tmp_path, "train.checkpoint_every=2", *GRID, *more)]
    began = time.monotonic()
    done = lmxexp(*command, "sweep=whole", cwd=tmp_path, **{k: ENV[k] for k in ("OPENBLAS_NUM_THREADS", "PYTHONPATH")})
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = time.monotonic() - began
    rng = random.Random(0)
    states = set()
    for i in range(kills):
        process = subprocess.Popen(
            [sys.executable, "-m", "lmxexp", *command, "sweep=part"],
            cwd=tmp_path,
            env=ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Each goes a little further than the last, so that every part of the sweep is hit.
        time.sleep(seconds * rng.uniform(0.15, 0.35 + 0.5 * i / kills))
        if how == "group":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
        states.add(_state(tmp_path / "outputs" / "sweeps" / "part"))
    last = lmxexp(*command, "sweep=part", cwd=tmp_path, **{k: ENV[k] for k in ("OPENBLAS_NUM_THREADS", "PYTHONPATH")})
    assert last.returncode == 0, last.stdout + last.stderr
    whole, part = (tmp_path / "outputs" / "sweeps" / name for name in ("whole", "part"))
    assert (part / "points.csv").read_bytes() == (whole / "points.csv").read_bytes()
    for run in sorted(whole.glob("*_*")):
        assert_same_run(run, part / run.name)
    assert len(states) > 2, "the kills came at different stages"


def _state(sweep: Path) -> tuple[str, ...]:
    """Of every point how far it was."""
    states = []
    for file in sorted(sweep.glob("*/outcome.json")):
        steps = sorted(p.name for p in (file.parent / "checkpoints").glob("step_*"))
        states.append(f"{file.parent.name} {json.loads(file.read_text())['status']} {steps[-1:]}")
    return tuple(states)
