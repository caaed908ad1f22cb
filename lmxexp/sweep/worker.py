"""``python -m lmxexp.sweep.worker JOB ANSWER``: one point, for the subprocess launcher. Not for people."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path

import cloudpickle

_LOOK_SECONDS = 1.0


def main(job: Path, answer: Path) -> None:
    """Run the pickled job and leave what Hydra's `run_job` returns."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals
    from hydra.types import HydraContext

    from lmxexp.compose import install

    threading.Thread(target=_follow_parent, args=(int(os.environ.get("LMXEXP_PARENT", "0")),), daemon=True).start()
    install()
    setup_globals()
    state, callbacks, task_function, cfg = pickle.loads(job.read_bytes())
    Singleton.set_state(state)
    returned = run_job(
        task_function=task_function,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks),
    )
    temporary = answer.with_suffix(".tmp")
    temporary.write_bytes(cloudpickle.dumps(returned))
    os.replace(temporary, answer)


def _follow_parent(parent: int) -> None:
    """Stop, with a checkpoint, when the sweep's process is no more: nobody would hear of the result."""
    while parent and os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    if parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
