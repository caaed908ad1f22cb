"""How long a run takes to its first step, and what of that is compilation."""

import json
import subprocess
import sys

from lmxexp.interfaces import Stage
from lmxexp.train.progress import StepClock


def test_what_the_first_step_took_longer():
    clock, short, whole = StepClock(), Stage(0, 4, 8), Stage(4, 8, 8)
    assert clock.compile_seconds is None
    clock.add(5.0, short)
    assert clock.compile_seconds is None  # nothing to compare it with
    for seconds in (1.0, 2.0):
        clock.add(seconds, short)
    for seconds in (9.0, 4.0):
        clock.add(seconds, whole)  # another shape, of which the first compiles too
    assert clock.compile_seconds == 5.0 - 1.5
    assert clock.first_step_seconds == 5.0


def test_a_first_step_that_was_no_longer_compiled_nothing():
    clock, stage = StepClock(), Stage(0, 4, 8)
    for seconds in (1.0, 3.0):
        clock.add(seconds, stage)
    assert clock.compile_seconds == 0.0


def test_a_process_says_when_its_first_step_was_through(tmp_path):
    (tmp_path / "text.txt").write_text("abcdefgh " * 500)
    line = "data=text data.path=text.txt model.d_model=16 model.n_heads=2 model.n_kv_heads=1 model.n_layers=1"
    line += " train.steps=4 train.batch_size=2 train.seq_len=16 logger=[jsonl] callback=[] hydra.run.dir=out"
    command = [sys.executable, "-m", "lmxexp", *line.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["perf/start_s"] > summary["perf/first_step_s"] > summary["perf/compile_s"] >= 0
