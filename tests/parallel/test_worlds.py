"""The same mathematics, and the same checkpoints, on any number of processes."""

import shutil
from pathlib import Path

import mlx.core as mx
import pytest

import lmxexp
from lmxexp.train import checkpoint
from tests.end_to_end.processes import deterministic
from tests.parallel.cases import CASES, SHARDED, overrides
from tests.parallel.launch import launch

QUICK = ["adamw", "ragged", "sharded-adamw"]
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


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Three steps of runs, and a run that one process began and two took up where it was to pause."""
    directory = tmp_path_factory.mktemp("two")
    shutil.copytree(alone(directory, PAUSED, until=3), directory / PAUSED)
    (directory / PAUSED / "summary.json").unlink()  # or there would be nothing to do
    launch(2, "-m", "tests.parallel.ranks", str(directory), "until=3", *QUICK, PAUSED, cwd=directory)
    return directory


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_train_as_one_does(two, name):
    assert_close(alone(two, name, until=3), two / name)


@pytest.mark.slow
def test_all_cases(tmp_path):
    launch(2, "-m", "tests.parallel.ranks", str(tmp_path), "until=5", *REST, cwd=tmp_path)
    for name in REST:
        assert_close(alone(tmp_path, name, until=5), tmp_path / name)


@pytest.mark.slow
def test_four_processes(tmp_path):
    names = ["whole", "sharded-whole"]
    launch(4, "-m", "tests.parallel.ranks", str(tmp_path), *names, cwd=tmp_path)
    for name in names:
        assert_close(alone(tmp_path, name), tmp_path / name)


def test_a_checkpoint_of_one_process_is_that_of_two_bit_for_bit(two):
    """Read whole, kept in parts, written whole."""
    one, two_ = (checkpoint.read(d / "checkpoints" / "step_00000003") for d in (alone(two, PAUSED), two / PAUSED))
    assert one.state == two_.state
    for name in ("model", "optimizer", "callbacks"):
        before, after = one.load(name), two_.load(name)
        assert before.keys() == after.keys()
        assert all(mx.array_equal(a, after[path], equal_nan=True) for path, a in before.items()), name
    assert (two / PAUSED / "summary.json").exists(), "the second wrote it"
