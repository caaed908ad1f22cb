"""The whole sweep is killed, again and again at random moments; given again, the command comes to the same table."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmxexp.sweep.ledger import OUTCOME_FILE, read_outcome
from tests.end_to_end.processes import assert_same_run, lmxexp, small
from tests.pythonpath import PYTHONPATH

ENV = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": PYTHONPATH}
GRID = ["attention=gqa,sliding", "seed=1,2"]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "how", "more"),
    [
        pytest.param(12, "all", ["logger=[jsonl,wandb]"], marks=pytest.mark.slow),
        pytest.param(20, "all", ["logger=[jsonl,wandb]"], marks=pytest.mark.exhaustive),
        pytest.param(5, "all", ["hydra/launcher=subprocess", "hydra.launcher.n_jobs=2"], marks=pytest.mark.exhaustive),
        # Its points are left alone, and must not write beside those of the next command.
        pytest.param(5, "parent", ["hydra/launcher=subprocess", "hydra.launcher.n_jobs=2"], marks=pytest.mark.slow),
        pytest.param(5, "all", ["hydra/sweeper=halving", "hydra.sweeper.factor=2"], marks=pytest.mark.exhaustive),
        pytest.param(5, "all", ["hydra/launcher=population", "hydra.launcher.force=true"], marks=pytest.mark.slow),
    ],
    ids=["in process", "in process, more often", "subprocesses", "parent of subprocesses", "halving", "population"],
)
def test_killed_at_random_moments(kills, how, more, tmp_path):
    command = ["-m", *small(tmp_path, "train.steps=24", "train.checkpoint_every=2", *GRID, *more)]
    done = lmxexp(*command, "sweep=whole", cwd=tmp_path, **ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    whole, part = (tmp_path / "outputs" / "sweeps" / name for name in ("whole", "part"))
    rng = random.Random(0)
    stages = []
    for moment in sorted(rng.uniform(0, 0.9 * _steps(whole)) for _ in range(kills)):
        process = subprocess.Popen(
            [sys.executable, "-m", "lmxexp", *command, "sweep=part"],
            cwd=tmp_path,
            env={**os.environ, **ENV},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if _steps(part) >= moment:  # again before it gets anywhere
            time.sleep(rng.uniform(0, 2))
        while _steps(part) < moment and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.05))
        if how == "parent" and process.poll() == 0 and len(stages) >= 3:
            break  # the points that were left alone have done the rest
        assert process.poll() is None, f"nothing is left to kill, at {stages}"
        _kill(process, children=how == "all")
        stages.append(_steps(part))
    last = lmxexp(*command, "sweep=part", cwd=tmp_path, **ENV)
    assert last.returncode == 0, last.stdout + last.stderr
    assert (part / "points.csv").read_bytes() == (whole / "points.csv").read_bytes()
    for run in sorted(whole.glob("*_*")):
        assert_same_run(run, part / run.name)
    assert len(set(stages)) > kills // 3, f"the kills came at different stages, not at {stages}"


def _kill(process: subprocess.Popen, *, children: bool) -> None:
    """With SIGKILL, its children first where they go too: they are in groups of their own."""
    process.send_signal(signal.SIGSTOP)  # it starts no more of them
    groups = {process.pid}
    if children:
        listed = subprocess.run(["ps", "-A", "-o", "pgid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        groups |= {group for group, parent in pairs if parent == process.pid}
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    process.wait()


def _steps(sweep: Path) -> int:
    """How far all points together are, as their checkpoints and ends tell; those that have begun count one."""
    total = 0
    for file in sweep.glob(f"*/{OUTCOME_FILE}"):
        outcome = read_outcome(file.parent)
        saved = [int(p.name.removeprefix("step_")) for p in (file.parent / "checkpoints").glob("step_*")]
        total += max([1, *saved, (outcome and outcome.step) or 0])
    return total
