"""``python -m lmxexp.sweep.worker JOB ANSWER``: work in a process of its own, for the launchers. Not for people."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle

_LOOK_SECONDS = 1.0


def main(job: Path, answer: Path) -> None:
    """Do the pickled job and leave what it returns."""
    from hydra.core.singleton import Singleton
    from hydra.core.utils import setup_globals

    from lmxexp.compose import install

    threading.Thread(target=_follow_parent, args=(int(os.environ.get("LMXEXP_PARENT", "0")),), daemon=True).start()
    install()
    setup_globals()
    state, do, args = pickle.loads(job.read_bytes())
    Singleton.set_state(state)
    returned = do(*args)
    temporary = answer.with_suffix(".tmp")
    temporary.write_bytes(cloudpickle.dumps(returned))
    os.replace(temporary, answer)


def point(callbacks: Any, task_function: Any, cfg: Any) -> Any:
    """One point of a sweep: what Hydra's `run_job` returns."""
    from hydra.core.utils import run_job

    return run_job(
        task_function=task_function,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context(callbacks),
    )


def context(callbacks: Any) -> Any:
    """Hydra's, of this process."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import HydraContext

    return HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)


def _follow_parent(parent: int) -> None:
    """Stop, with a checkpoint, when the sweep's process is no more: nobody would hear of the result."""
    while parent and os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    if parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
