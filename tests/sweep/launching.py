"""A subprocess launcher with what a sweeper gives it, and tasks for its points.

``python -m tests.sweep.launching DIRECTORY N_JOBS POINTS [WORKER]`` launches points that wait to be stopped.
"""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import open_dict

from lmxexp.sweep.composing import FrozenLoader
from lmxexp.sweep.subprocess_launcher import SubprocessLauncher
from tests.pythonpath import PYTHONPATH
from tests.sweep.planning import Sweep, sweep


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("it cannot be sent")


def task(cfg: Any) -> Any:
    """What a point does stands in its configuration."""
    print("said to the terminal")
    print("and to stderr", file=sys.stderr)
    hydra: Any = HydraConfig.get()
    if cfg.does == "returns":
        print("x" * 100_000)  # more than a pipe holds
        return {"pid": os.getpid(), "num": hydra.job.num, "dir": hydra.runtime.output_dir, "seed": cfg.seed,
                "cwd": os.getcwd(), "argv": sys.argv, "threads": os.environ.get("OPENBLAS_NUM_THREADS")}  # fmt: skip
    if cfg.does == "raises":
        raise KeyError("no luck")
    if cfg.does == "raises what cannot be sent":
        raise Unpicklable
    if cfg.does == "waits":
        asked = Path(hydra.runtime.output_dir) / "asked"
        signal.signal(signal.SIGTERM, lambda number, frame: (asked.touch(), os._exit(0)))
        (Path(hydra.runtime.output_dir) / "waiting").write_text(str(os.getpid()))
        time.sleep(120)
    return os.kill(os.getpid(), signal.SIGKILL) if cfg.does == "is killed" else os._exit(3)


def launcher(ready: Sweep, points: Sequence[str], **settings: Any) -> tuple[SubprocessLauncher, list[list[str]]]:
    """The launcher, and the lines of its points, each of which does something."""
    loader = FrozenLoader(ready.loader)
    lines = []
    for i, does in enumerate(points):
        line = [f"seed={i}"]
        cfg = copy.deepcopy(ready.master)  # composing takes longer
        with open_dict(cfg):
            cfg.does, cfg.seed, cfg.hydra.sweep.dir, cfg.hydra.overrides.task = does, i, str(ready.directory), line
        loader.freeze(line, cfg, subdir=f"{i}_{does.replace(' ', '_')}")
        lines.append(line)
    launcher = SubprocessLauncher(**settings)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    launcher.setup(hydra_context=context, task_function=task, config=ready.master)
    return launcher, lines


def launch(ready: Sweep, points: Sequence[str], **settings: Any) -> list[JobReturn]:
    made, lines = launcher(ready, points, **settings)
    return list(made.launch(lines, initial_job_idx=0))


def start(directory: Path, *argv: str) -> subprocess.Popen:
    """This module as a process in a session of its own, as a terminal's is."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.launching", str(directory), *argv],
        cwd=root,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    place, n_jobs, n_points, *worker = sys.argv[1:]
    if worker:
        sys.executable = worker[0]
    with sweep(Path(place)) as prepared:
        try:
            launch(prepared, ["waits"] * int(n_points), n_jobs=int(n_jobs))
        except KeyboardInterrupt:
            print("interrupted")
            sys.exit(130)
