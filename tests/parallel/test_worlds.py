"""The same mathematics, and the same checkpoints, on any number of processes."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest

import lmxexp
from lmxexp.logger.jsonl import read_metrics
from lmxexp.train import checkpoint
from tests.end_to_end.processes import deterministic
from tests.parallel.cases import CASES, SHARDED, overrides
from tests.parallel.launch import launch

QUICK = ["ragged", "sharded-adamw"]
REST = [name for name in (*CASES, *(f"sharded-{name}" for name in SHARDED)) if name not in QUICK]

PAUSED = "sharded-ema"

ROUNDING = 5e-6
"""Relative: sums of fp32 numbers in another order, over a dozen steps. The worst that was seen is 2e-6, of a norm."""


def alone(directory: Path, name: str, **settings) -> Path:
    """The run of a case in this process."""
    run_dir = directory / "alone" / name.removeprefix("sharded-")
    if not run_dir.exists():
        lmxexp.run(lmxexp.compose(overrides(name, directory, 1)), run_dir, **settings)
    return run_dir


def assert_close(one: Path, other: Path) -> None:
    expected, actual = deterministic(one), deterministic(other)
    assert len(expected) == len(actual) > 0
    for want, got in zip(expected, actual, strict=True):
        assert got == pytest.approx(want, rel=ROUNDING), f"step {want['step']}"
    of_one, of_other = (json.loads((d / "run.json").read_text()) for d in (one, other))
    for count in ("params", "params_by_part", "flops_per_token", "state_elements"):
        assert of_other[count] == of_one[count], f"{count} are those of the whole model"
    assert json.loads((other / "summary.json").read_text())["params"] == of_one["params"]
    for line in read_metrics(other / "metrics.jsonl"):
        if "perf/mfu" in line and of_other.get("ramp") is None:
            peak = 1e9 * of_other["matmul_gflops"] * of_other["world"]["size"]
            assert line["perf/mfu"] == pytest.approx(line["perf/tokens_per_s"] * of_one["flops_per_token"] / peak)


def test_two_processes_train_as_one_does(tmp_path):
    """And of what one process left they take up parts, and leave the same bit for bit. One test, because to start
    processes is what takes time."""
    before = alone(tmp_path, PAUSED, until=2)
    shutil.copytree(before, tmp_path / PAUSED)
    (tmp_path / PAUSED / "summary.json").unlink()  # or there would be nothing to do
    launch(2, "-m", "tests.parallel.ranks", str(tmp_path), "until=2", *QUICK, PAUSED, cwd=tmp_path)
    for name in QUICK:
        assert_close(alone(tmp_path, name, until=2), tmp_path / name)

    assert (tmp_path / PAUSED / "summary.json").exists(), "it went on"
    one, two = (checkpoint.read(d / "checkpoints" / "step_00000002") for d in (before, tmp_path / PAUSED))
    assert one.state == two.state
    for name in ("model", "optimizer", "callbacks"):
        arrays, again = one.load(name), two.load(name)
        assert arrays.keys() == again.keys()
        assert all(mx.array_equal(a, again[path], equal_nan=True) for path, a in arrays.items()), name


@pytest.mark.slow
def test_all_cases(tmp_path):
    launch(2, "-m", "tests.parallel.ranks", str(tmp_path), "until=5", *REST, cwd=tmp_path)
    for name in REST:
        assert_close(alone(tmp_path, name, until=5), tmp_path / name)


@pytest.mark.exhaustive
def test_four_processes(tmp_path):
    names = ["whole", "sharded-whole"]
    launch(4, "-m", "tests.parallel.ranks", str(tmp_path), *names, cwd=tmp_path)
    for name in names:
        assert_close(alone(tmp_path, name), tmp_path / name)
