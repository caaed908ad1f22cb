"""A run that was stopped and resumed is, bit for bit, the run that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from lmxexp import compose, run
from tests.contracts.small_models import kinds
from tests.end_to_end.processes import assert_same_run, deterministic, lmxexp, small

ROOT = Path(__file__).resolve().parents[2]
OPTIMIZERS = sorted(f.stem for f in (ROOT / "conf" / "optim").glob("*.yaml"))
RESUME_ALL = (
    "import sys, lmxexp\nfor d in sys.argv[1:]: assert lmxexp.run(lmxexp.compose([f'resume={d}'])).status == 'ok'"
)


def stop_at(step: int, **settings) -> str:
    knobs = "".join(f",{k}:{str(v).lower()}" for k, v in settings.items())
    return f"+callback.stop={{_target_:tests.end_to_end.stop_at.StopAt,at:{step}{knobs}}}"


MIXERS = kinds("attention")
# Each optimizer with one mixer, and each mixer with one optimizer: what resumes alone resumes together. Six at a time,
# because a process takes as long to start as two of them to train.
PAIRS = {
    **{
        f"optim={','.join(OPTIMIZERS[i : i + 6])}": [(f"optim={o}", "attention=gqa") for o in OPTIMIZERS[i : i + 6]]
        for i in range(0, len(OPTIMIZERS), 6)
    },
    **{
        f"attention={','.join(MIXERS[i : i + 6])}": [
            (f"attention={a}", "model.n_heads=4", "model.n_kv_heads=2") for a in MIXERS[i : i + 6]
        ]
        for i in range(0, len(MIXERS), 6)
    },
}  # fmt: skip


FURTHER_MIXERS = [choice for choice in PAIRS if choice.startswith("attention=")][1:]


@pytest.mark.parametrize(
    "choice", [pytest.param(c, marks=[pytest.mark.exhaustive] if c in FURTHER_MIXERS else []) for c in PAIRS]
)
def test_every_optimizer_and_attention(choice, tmp_path):
    """Stopped by SIGTERM in step 6 of 12, between two checkpoints, with dropout and accumulation on; gone on with in
    another process."""
    stopped = []
    for i, overrides in enumerate(PAIRS[choice]):
        overrides = small(tmp_path, *overrides)
        whole = run(compose(overrides), tmp_path / f"{i}_whole")
        assert whole.status == "ok"
        part = run(compose([*overrides, stop_at(6)]), tmp_path / f"{i}")
        assert (part.status, part.signal, part.summary["step"]) == ("stopped", signal.SIGTERM, 6)
        stopped.append(part.run_dir)
    subprocess.run([sys.executable, "-c", RESUME_ALL, *map(str, stopped)], cwd=ROOT, check=True, timeout=250)
    for directory in stopped:
        assert_same_run(directory, directory.with_name(f"{directory.name}_whole"))


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_every_precision(precision, tmp_path):
    overrides = small(tmp_path, f"train.precision={precision}", "train.n_micro=1")
    run(compose(overrides), tmp_path / "whole")
    run(compose([*overrides, stop_at(7)]), tmp_path / "part")
    run(compose([f"resume={tmp_path / 'part'}"]))
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_stopped_during_an_evaluation(tmp_path):
    """The step's evaluation is made up for, and its line in the log is whole."""
    overrides = small(tmp_path)
    run(compose(overrides), tmp_path / "whole")
    # The signal comes before the evaluation of the same step, which then stops at once.
    cfg = compose([*overrides, stop_at(8, early=True)])
    order = ["stop", *[k for k in cfg.callback if k != "stop"]]
    with open_dict(cfg):
        cfg.callback = OmegaConf.create({k: OmegaConf.to_container(cfg.callback[k]) for k in order})
    part = run(cfg, tmp_path / "part")
    assert (part.status, part.summary["step"]) == ("stopped", 8)
    assert deterministic(tmp_path / "part")[-1]["step"] == 7
    run(compose([f"resume={tmp_path / 'part'}"]))
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_from_the_command_line(tmp_path):
    """Ctrl-C and SIGTERM to a real process: a checkpoint first, the exit codes of shells, then on to the same end."""
    overrides = small(tmp_path, "train.steps=60", "train.checkpoint_every=50")
    assert lmxexp(*overrides, "hydra.run.dir=whole", cwd=tmp_path).returncode == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        directory = tmp_path / str(code)
        process = start(*overrides, f"hydra.run.dir={directory}", cwd=tmp_path)
        wait_for_steps(directory, 5, process)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
        summary = json.loads((directory / "summary.json").read_text())
        assert summary["status"] == "stopped"
        assert 5 <= summary["step"] < 60
        assert lmxexp(f"resume={directory}", cwd=tmp_path).returncode == 0
        assert_same_run(directory, tmp_path / "whole")
    finished = lmxexp(f"resume={directory}", cwd=tmp_path)
    assert finished.returncode == 0
    assert "is finished" in finished.stdout


def test_killed_before_its_first_checkpoint(tmp_path):
    """It starts over, in the same directory and as the same run, and leaves the lines of no other future."""
    overrides = small(tmp_path, "train.steps=60", "train.checkpoint_every=50")
    directory = tmp_path / "killed"
    process = start(*overrides, f"hydra.run.dir={directory}", cwd=tmp_path)
    wait_for_steps(directory, 5, process)
    process.kill()
    process.wait()
    assert not (directory / "checkpoints").exists()
    run_id = json.loads((directory / "run.json").read_text())["run_id"]
    assert lmxexp(f"resume={directory}", cwd=tmp_path).returncode == 0
    record = json.loads((directory / "run.json").read_text())
    assert record["run_id"] == run_id
    assert [r["step"] for r in record["resumed"]] == [0]
    run(compose(overrides), tmp_path / "whole")
    assert_same_run(directory, tmp_path / "whole")


def test_more_steps_go_on_from_a_finished_run(tmp_path):
    overrides = small(tmp_path, "schedule=constant")
    short = run(compose(overrides), tmp_path / "run")
    assert short.summary["step"] == 12
    longer = run(compose([f"resume={short.run_dir}", "train.steps=16"]))
    assert (longer.status, longer.summary["step"]) == ("ok", 16)
    whole = run(compose([*overrides, "train.steps=16"]), tmp_path / "whole")
    assert deterministic(longer.run_dir)[-1] == deterministic(whole.run_dir)[-1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_lose_nothing(tmp_path):
    """``kill -9`` at 20 random moments, while checkpoints are written among them."""
    # Every step writes a checkpoint, of a model large enough that writing takes a good part of the time.
    overrides = small(
        tmp_path,
        "train.steps=400",
        "train.checkpoint_every=1",
        "train.eval_every=20",
        "model.d_model=128",
        "model.n_layers=4",
    )
    assert lmxexp(*overrides, "hydra.run.dir=whole", cwd=tmp_path, timeout=300).returncode == 0
    directory, rng = tmp_path / "killed", random.Random(0)
    in_writing = kills = 0
    args = [*overrides, f"hydra.run.dir={directory}"]
    while kills < 20:
        process = start(*args, cwd=tmp_path)
        before = steps_logged(directory)
        # Four fifths of the kills fall into training, the others into the start of the process.
        if rng.random() < 0.8:
            wait_for_steps(directory, min(before + rng.randint(1, 12), 399), process)
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        in_writing += any((directory / "checkpoints").glob(".tmp-*"))
        if (directory / "run.json").exists():  # or it was killed before it was a run
            args = [f"resume={directory}"]
    final = lmxexp(*args, cwd=tmp_path, timeout=300)
    assert final.returncode == 0, final.stderr
    assert_same_run(directory, tmp_path / "whole")
    assert in_writing > 0, "no kill fell into the writing of a checkpoint: the test shows less than it says"


def start(*args: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "lmxexp", *args],
        cwd=cwd,
        env={**os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def steps_logged(directory: Path) -> int:
    file = directory / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def wait_for_steps(directory: Path, n: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while steps_logged(directory) < n and time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the run ended with {process.returncode} after {steps_logged(directory)} steps")
        time.sleep(0.01)
