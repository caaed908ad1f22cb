"""How long the command takes over many runs, as a process."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.compare.made_runs import make_many


@pytest.fixture(scope="module")
def folder():
    """Removed at once: it holds 200 MB."""
    with tempfile.TemporaryDirectory() as path:
        make_many(Path(path) / "many", 500, 2000)
        yield Path(path)


@pytest.mark.slow
@pytest.mark.parametrize("plots", [False, True])
def test_500_runs_of_2000_steps_within_10_seconds(folder, plots):
    """Imports included. Where the machine is busy, the processor's time counts: other work is none of the command's."""
    out = folder / f"out_{plots}"
    command = [sys.executable, "-m", "lmxexp.compare", str(folder / "many"), "--out", str(out)]
    before, began = os.times(), time.perf_counter()
    done = subprocess.run([*command, *([] if plots else ["--no-plots"])], capture_output=True, text=True, check=True)
    wall, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert "500 runs in 100 arms" in done.stdout
    assert (out / "curves.png").exists() == (out / "comparison.html").exists() == plots
    print(f"plots={plots}: {wall:.1f} s, of a processor {spent:.1f} s")
    assert min(wall, spent) < 10
