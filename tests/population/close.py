"""When what was trained together is what it is alone: bit for bit on a CPU, within rounding on a GPU.

A GPU's products of several members are summed in another order. Adam, Lion and Muon make a step of full size of a
gradient that is nothing but rounding, so single weights may differ by more; what is compared there is the norm of the
difference.
"""

import csv
import math
from pathlib import Path

import mlx.core as mx
import numpy as np

from lmxexp.train import checkpoint
from tests.end_to_end.processes import assert_same_run, deterministic


def on_a_gpu() -> bool:
    return mx.default_device() == mx.gpu


def rounding(cpu: float, gpu: float = 1e-4) -> float:
    """The tolerance for `assert_close` of this machine."""
    return gpu if on_a_gpu() else cpu


def difference(name: str, got: mx.array, want: mx.array, tolerance: float) -> str | None:
    """By how much two arrays differ, if by more than ``tolerance``: of the largest number, on a GPU of the norm; 0: bit
    for bit."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype), name
    got, want = (np.array(x.astype(mx.float32), np.float64) for x in (got, want))
    size = np.linalg.norm if on_a_gpu() else lambda x: np.abs(x).max(initial=0.0)
    error, whole = (float(size(x.ravel())) for x in (got - want, want))
    return None if error <= tolerance * whole else f"{name} differs by {error / (whole or 1.0):.1e}"


def assert_close(got: mx.array, want: mx.array, tolerance: float, name: str) -> None:
    """See `difference`."""
    wrong = difference(name, got, want, tolerance)
    assert wrong is None, wrong


def assert_metrics_close(got: dict[str, float], want: dict[str, float]) -> None:
    """Of a step in mixed precision, as runs are in on a GPU: products are rounded to 2^-8, and a few predictions are so
    close that they fall to the other side."""
    assert set(got) == set(want)
    for name, value in want.items():
        tolerance = {"abs_tol": 2e-2} if "accuracy" in name else {"rel_tol": 1e-2, "abs_tol": 1e-6}
        assert math.isclose(got[name], value, **tolerance), (name, got[name], value)


def assert_run_as_alone(alone: Path, together: Path) -> None:
    if not on_a_gpu():
        assert_same_run(alone, together)
        return
    lines = [deterministic(path) for path in (alone, together)]
    assert [set(line) for line in lines[0]] == [set(line) for line in lines[1]]
    for a, b in zip(*lines, strict=True):
        assert_metrics_close(b, a)
    saved = [checkpoint.read(checkpoint.newest(path / "checkpoints")) for path in (alone, together)]
    assert saved[0].state["step"] == saved[1].state["step"]
    want, got = (s.load("model") for s in saved)
    assert want.keys() == got.keys()
    for path, array in want.items():
        assert_close(got[path], array, 1e-2, path)


def assert_sweep_as_alone(alone: Path, together: Path) -> None:
    tables = [list(csv.reader((path / "points.csv").open())) for path in (alone, together)]
    if not on_a_gpu():
        assert tables[0] == tables[1]
    assert [len(row) for row in tables[0]] == [len(row) for row in tables[1]]
    for run in sorted(alone.glob("*_*")):
        assert_run_as_alone(run, together / run.name)
