"""A stand-in for a training, in a process of its own that tests may kill: `python logging_process.py OPTIONS-AS-JSON`.

Prints a line for each step that was logged. The metrics are a function of the step, as they are for a training that
resumes bit for bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmxexp.interfaces import RunInfo
from lmxexp.logger import wandb as wandb_logger
from lmxexp.logger.jsonl import Jsonl
from lmxexp.logger.loggers import Loggers
from lmxexp.logger.wandb import Wandb


def metrics(step: int) -> dict[str, float]:
    row = {"tokens": step * 2048.0, "train/loss": 1 / (step + 2), "perf/step_ms": step**0.5, "mem/peak_gb": 0.1 * step}
    # Enough bytes for W&B to write some of them before it is killed.
    return row | {f"train/extra_{i}": step / (i + 3) for i in range(20)}


def signal_helper(number: int, pid_file: Path) -> None:
    lines = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    helper_of_us = ("--pid", str(os.getpid()))
    mine = [int(words[0]) for words in map(str.split, lines) if helper_of_us in pairwise(words)]
    assert len(mine) == 1, mine
    pid_file.write_text(str(mine[0]))
    os.kill(mine[0], number)


def main(
    run_dir: str,
    run_id: str = "abc123",
    resume_step: int = 0,
    steps: int = 20,
    pause: float = 0.0,
    signal_helper_at: int = -1,
    number: int = 0,
    mode: Any = "auto",
    init_timeout: float = 5.0,
) -> None:
    wandb = Wandb(
        project="lmxexp-test",
        entity=None,
        group=None,
        job_type=None,
        mode=mode,
        init_timeout=init_timeout,
        finish_timeout=2.0,
    )
    loggers = Loggers({"jsonl": Jsonl(), "wandb": wandb})
    Path(run_dir).mkdir(exist_ok=True)
    config = {"resume": run_dir if resume_step else None}
    loggers.start(RunInfo(Path(run_dir), run_id, "name", config, {}, {}, steps, resume_step))
    for step in range(resume_step + 1, steps + 1):
        if step == signal_helper_at:
            signal_helper(number, Path(run_dir) / "helper.pid")
        loggers.log(metrics(step), step=step)
        print(step, flush=True)
        time.sleep(pause)
    loggers.finish("ok", {"params": 1})
    print(json.dumps({"wandb_imported": "wandb" in sys.modules, "seconds": loggers.seconds}), flush=True)


if __name__ == "__main__":
    wandb_logger._HANG_SECONDS = 5.0
    for options in json.loads(sys.argv[1]):
        main(**options)
