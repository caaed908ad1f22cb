"""Sweeps as real processes: nothing is lost, nothing runs twice, one failure leaves the others alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.processes import assert_same_run, lmxexp, small
from tests.pythonpath import PYTHONPATH

ENV = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH}

KINDS = '''
import os
import signal
from pathlib import Path

from lmxexp.model.attention.gqa import GroupedQueryAttention


class Killed(GroupedQueryAttention):
    """Does what the system does to a process that takes too much memory."""

    def __call__(self, x, **kwargs):
        if x.shape[0] > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(x, **kwargs)


class Raises(GroupedQueryAttention):
    def __call__(self, x, **kwargs):
        raise RuntimeError("no such luck")


class Edits(GroupedQueryAttention):
    """Changes and removes configuration files while the sweep goes on."""

    def __call__(self, x, **kwargs):
        for file in Path("my").rglob("*.yaml"):
            file.unlink()
        return super().__call__(x, **kwargs)
'''


@pytest.fixture
def place(tmp_path):
    """A directory with kinds of the user's own, and what is typed for them."""
    (tmp_path / "my_kinds.py").write_text(KINDS)
    folder = tmp_path / "my" / "model" / "attention"
    folder.mkdir(parents=True)
    for name in ("Killed", "Raises", "Edits"):
        text = f"# One of mine.\ndefaults: [gqa, _self_]\n_target_: my_kinds.{name}\n"
        (folder / f"{name.lower()}.yaml").write_text(text)
    (folder / "mine.yaml").write_text("# One of mine.\ndefaults: [gqa, _self_]\nscale: 0.25\n")
    return tmp_path


def sweep(place: Path, *overrides: str, name: str = "s", timeout: float = 240) -> subprocess.CompletedProcess:
    """``lmxexp -m … sweep=NAME``, small."""
    return lmxexp(
        "-m", "--config-dir", "my", *small(place, *overrides), f"sweep={name}", cwd=place, timeout=timeout, **ENV
    )


def points(place: Path, name: str = "s") -> list[dict[str, str]]:
    with (place / "outputs" / "sweeps" / name / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def begun(place: Path, name: str = "s") -> dict[str, int]:
    """How often each point began."""
    files = (place / "outputs" / "sweeps" / name).glob("*/outcome.json")
    return {file.parent.name: json.loads(file.read_text())["attempt"] for file in files}


def test_the_same_command_runs_what_is_missing(place):
    done = sweep(place, "attention=gqa,sliding", "seed=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    before = {file: file.stat().st_mtime_ns for file in place.rglob("outputs/**/*") if file.name != "lmxexp.log"}
    table = (place / "outputs/sweeps/s/points.csv").read_bytes()
    done = sweep(place, "attention=gqa,sliding", "seed=1,2")
    assert done.returncode == 0
    assert "4 points, 4 of them done before" in done.stdout
    changed = {f.name for f, t in before.items() if f.is_file() and f.stat().st_mtime_ns != t}
    assert changed <= {"sweep.json", "points.csv", "multirun.yaml", ".lock"}
    assert (place / "outputs/sweeps/s/points.csv").read_bytes() == table
    # A larger grid keeps what is there; another place to report to is the same run.
    done = sweep(place, "attention=gqa,sliding", "seed=2,1,3", "tags=[more]", "train.memory_limit_gb=100")
    assert done.returncode == 0
    assert "6 points, 4 of them done before" in done.stdout
    assert begun(place) == {
        "0_attention=gqa,seed=1": 1,
        "1_attention=gqa,seed=2": 1,
        "2_attention=sliding,seed=1": 1,
        "3_attention=sliding,seed=2": 1,
        "4_attention=gqa,seed=3": 1,
        "5_attention=sliding,seed=3": 1,
    }
    # Another text is other data: nothing is mixed.
    (place / "bottles.txt").write_text((place / "bottles.txt").read_text().replace("green", "brown"))
    done = sweep(place, "attention=gqa", "seed=1")
    assert done.returncode == 0
    attempts = begun(place)
    assert len(attempts) == 7
    assert [n for name, n in attempts.items() if name.startswith("6_")] == [1]


@pytest.mark.parametrize("launcher", ["basic", "subprocess"])
def test_files_that_change_meanwhile_change_nothing(place, launcher):
    done = sweep(place, "attention=edits,mine", "seed=1,2", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list((place / "my").rglob("*.yaml")), "the first point removed them"
    assert [p["status"] for p in points(place)] == ["ok"] * 4
    config = (place / "outputs/sweeps/s/3_attention=mine,seed=2/config.yaml").read_text()
    assert "scale: 0.25" in config


def test_one_failure_leaves_the_others_alone(place):
    done = sweep(
        place,
        "attention=raises,killed,sliding",
        "optim.learning_rate=1e-3,1e30",
        "train.max_grad_norm=null",
        "hydra/launcher=subprocess",
        "hydra.launcher.n_jobs=2",
    )
    assert done.returncode == 1
    rows = {(p["attention"], p["optim.learning_rate"]): p for p in points(place)}
    assert {key: p["status"] for key, p in rows.items()} == {
        ("raises", "0.001"): "failed",
        ("raises", "1e+30"): "failed",
        ("killed", "0.001"): "killed",
        ("killed", "1e+30"): "killed",
        ("sliding", "0.001"): "ok",
        ("sliding", "1e+30"): "diverged",
    }
    assert rows["raises", "0.001"]["reason"] == "RuntimeError: no such luck (see traceback.txt)"
    assert "signal 9 (SIGKILL)" in rows["killed", "0.001"]["reason"]
    assert "train/loss is " in rows["sliding", "1e+30"]["reason"]
    log = done.stdout[: done.stdout.index("reason")]
    for said in ("no such luck", "signal 9", "train/loss is "):
        assert said in log
    # What failed runs again, what has a result does not: diverging is one.
    done = sweep(place, "attention=raises,sliding", "optim.learning_rate=1e-3,1e30", "train.max_grad_norm=null")
    assert done.returncode == 1
    attempts = begun(place)
    assert [attempts[f"{i}_attention={kind},optim.learning_rate={lr}"] for i, kind, lr in (
        (0, "raises", "0.001"), (4, "sliding", "0.001"), (5, "sliding", "1e+30"))] == [2, 1, 1]  # fmt: skip


def test_a_sweep_can_stop_at_the_first_failure(place):
    done = sweep(place, "attention=gqa,raises,sliding", "sweep.on_failure=stop")
    assert done.returncode == 1
    assert [p["status"] for p in points(place)] == ["ok", "failed", "not run"]
    done = sweep(place, "attention=gqa,raises,sliding")
    assert [p["status"] for p in points(place)] == ["ok", "failed", "ok"]


def test_a_point_above_its_memory_limit_is_a_row(place):
    done = sweep(place, "seed=1,2", "train.memory_limit_gb=1e-6")
    assert done.returncode == 1
    assert [p["status"] for p in points(place)] == ["failed", "failed"]
    assert "is above the limit of 1e-06 GB" in points(place)[0]["reason"]


def test_mistakes_stop_a_sweep_before_it_starts(place):
    done = sweep(place, "attention=gqa,mha", "optim.betas=[0.9,0.99]", "optim=adamw,lion")
    assert done.returncode == 1
    assert not (place / "outputs").exists()
    assert "attention=mha optim=adamw and 1 more point: model.n_kv_heads=1 would be ignored" in done.stderr
    done = sweep(place, "attention=gqa,sliding", "model.n_kv_heads=1,3")
    assert done.returncode == 1
    assert not (place / "outputs").exists()
    assert "model.n_kv_heads=3" in done.stderr
    done = sweep(place, "seed=1", "sweep.on_failure=maybe")
    assert "sweep.on_failure=maybe: expected one of continue, stop" in done.stderr
    done = lmxexp(*small(place, "sweep=x"), cwd=place, **ENV)
    assert done.returncode == 1
    assert "--multirun" in done.stderr


def test_two_at_a_time_are_refused(place):
    command = [sys.executable, "-m", "lmxexp", "-m", *small(place, "seed=1,2", "train.steps=2000"), "sweep=s"]
    first = subprocess.Popen(command, cwd=place, env={**os.environ, **ENV}, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(place.glob("outputs/sweeps/s/0_*/metrics.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        done = sweep(place, "seed=1,2", "train.steps=2000")
        assert done.returncode == 1
        assert f"is in use by another process (pid {first.pid})" in done.stderr
        first.send_signal(signal.SIGTERM)
        out, _ = first.communicate(timeout=60)
        assert first.returncode == 143
        assert "stopped" in out
        assert (place / "outputs/sweeps/s/0_seed=1/summary.json").is_file()
    finally:
        first.kill()


def test_halving_stops_poor_arms_and_leaves_the_others_as_they_are(place):
    arms = ["optim.learning_rate=1e-5,1e-4,1e-3,1e-2", "seed=1,2"]
    done = sweep(place, *arms, "hydra/sweeper=halving", "hydra.sweeper.factor=2")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = points(place)
    assert sorted(p["status"] for p in rows) == ["ok"] * 2 + ["pruned"] * 6
    best = [p for p in rows if p["status"] == "ok"]
    assert {p["optim.learning_rate"] for p in best} == {"0.01"}
    assert {p["step"] for p in rows if p["status"] == "pruned"} == {"3", "6"}
    assert "arms, 2 go on" in done.stdout
    whole = sweep(place, "optim.learning_rate=1e-2", "seed=1,2", name="whole")
    assert whole.returncode == 0
    for i, seed in enumerate((1, 2)):
        paused = place / f"outputs/sweeps/s/{6 + i}_optim.learning_rate=0.01,seed={seed}"
        assert_same_run(paused, place / f"outputs/sweeps/whole/{i}_seed={seed}")
    table = (place / "outputs/sweeps/s/points.csv").read_bytes()
    again = sweep(place, *arms, "hydra/sweeper=halving", "hydra.sweeper.factor=2")
    assert "8 points, 8 of them done before" in again.stdout
    assert (place / "outputs/sweeps/s/points.csv").read_bytes() == table


def test_random_search_draws_the_same_points_again(place):
    drawn = ["optim.learning_rate=tag(log,interval(1e-4,1e-2))", "hydra/sweeper=random", "hydra.sweeper.n_trials=2"]
    assert sweep(place, *drawn).returncode == 0
    rows = points(place)
    assert len({p["optim.learning_rate"] for p in rows}) == 2
    assert "2 points, 2 of them done before" in sweep(place, *drawn).stdout
    assert points(place) == rows
