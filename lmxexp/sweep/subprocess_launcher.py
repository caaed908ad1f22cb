"""Every point of a sweep in a process of its own."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from lmxexp.cli.errors import refuse
from lmxexp.sweep import worker
from lmxexp.sweep.gpus import Slots, cuda_gpus
from lmxexp.sweep.ledger import CONSOLE_FILE, PointProcessError

A = TypeVar("A")
B = TypeVar("B")

_GRACE_SECONDS = 60.0
"""For a stopped point to write its last checkpoint."""


class SubprocessLauncher(Launcher):
    """A fresh process for each point, ``n_jobs`` at a time.

    A point that is killed (for its memory, say) leaves the others alone, and peak memory is the point's own. A process
    costs about two seconds to start. What it prints is in ``console.log`` of the point's directory. When the sweep is
    stopped or killed, its points write a checkpoint and stop too. Where there are several NVIDIA GPUs each process has
    one of them.

    Args:
        n_jobs: processes at a time; each gets its share of the CPU's cores for matrix products, and has to fit (with
            ``train.n_micro=auto``) into its share of a device's memory that they have in common.
        timeout: seconds after which a point is killed; None: none.
    """

    config: DictConfig
    hydra_context: HydraContext
    task_function: TaskFunction

    def __init__(self, n_jobs: int = 1, timeout: float | None = None):
        if n_jobs < 1:
            refuse(f"hydra.launcher.n_jobs={n_jobs} must be at least 1")
        if timeout is not None and timeout <= 0:
            refuse(f"hydra.launcher.timeout={timeout} must be a positive number of seconds, or null")
        self.n_jobs, self.timeout = n_jobs, timeout
        self._slots = Slots(n_jobs, cuda_gpus() if n_jobs > 1 else [])
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopping = False
        self._lock = threading.Lock()
        """So that no process starts, unseen, while the others are told to stop."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = [self._compose(initial_job_idx + i, list(line)) for i, line in enumerate(job_overrides)]
        return self.side_by_side(self._run, jobs)

    def side_by_side(self, run: Callable[[A], B], jobs: Sequence[A]) -> list[B]:
        """``run`` of each, ``n_jobs`` at a time, in threads that may wait for processes (`ask`)."""
        with _terminated_by_signals(), ThreadPoolExecutor(self.n_jobs) as pool:
            try:
                return list(pool.map(run, jobs))  # an exception cancels those that have not begun
            except BaseException:
                self._stop()
                raise

    def _compose(self, index: int, line: list[str]) -> _Job:
        cfg = self.hydra_context.config_loader.load_sweep_config(self.config, line)
        with open_dict(cfg):
            cfg.hydra.job.id, cfg.hydra.job.num = str(index), index
        return _Job(cfg, _run_dir(cfg))  # here, because the threads share the one HydraConfig

    def _run(self, job: _Job) -> JobReturn:
        """One point, start to end, in a thread that waits for its process."""
        answer = self.ask(job.run_dir, worker.point, self.hydra_context.callbacks, self.task_function, job.cfg)
        return failed(job.cfg, answer) if isinstance(answer, Exception) else answer

    def ask(self, run_dir: Path, do: Callable[..., Any], *args: Any) -> Any:
        """What ``do(*args)`` returns in a process of its own, or the error that it came to.

        Args:
            run_dir: where the process prints to.
        """
        file, answer = run_dir / ".job.pickle", run_dir / ".answer.pickle"
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            answer.unlink(missing_ok=True)
            file.write_bytes(cloudpickle.dumps((Singleton.get_state(), do, args)))
            with self._slots.one() as gpu:
                code = self._wait(file, answer, run_dir, gpu)
            if answer.is_file():
                return pickle.loads(answer.read_bytes())
            return PointProcessError(_end(code, self.timeout))
        except Exception as e:  # the disk is full, say: the other points go on
            return e
        finally:
            for path in (file, answer):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _wait(self, job: Path, answer: Path, run_dir: Path, gpu: Mapping[str, str]) -> int | None:
        """The process's exit code; None if it took too long."""
        command = [sys.executable, "-m", "lmxexp.sweep.worker", str(job), str(answer)]
        with (run_dir / CONSOLE_FILE).open("ab") as output, self._lock:
            if self._stopping:
                return -signal.SIGTERM
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self._environment(), **gpu},
                # Ctrl-C reaches a group: it would ask twice for a stop, and so end the point without a checkpoint.
                process_group=0,
            )
            self._running.add(process)
        try:
            return process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            return None
        finally:
            with self._lock:
                self._running.discard(process)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([*(p or os.getcwd() for p in sys.path)])  # modules of the user's own, as they are here
        threads = str(max(1, (os.cpu_count() or 1) // self.n_jobs))
        shared = {"OPENBLAS_NUM_THREADS": threads} if self.n_jobs > 1 else {}
        if self._slots.sharing > 1:
            shared["LMXEXP_SHARING"] = str(self._slots.sharing)  # of its device's memory, see `lmxexp.device`
        return {**shared, **os.environ, "PYTHONPATH": path, "LMXEXP_PARENT": str(os.getpid())}

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:  # time is up, or a second Ctrl-C
            for process in running:
                if process.poll() is None:
                    _kill(process)


@dataclass(frozen=True)
class _Job:
    cfg: DictConfig
    run_dir: Path


def failed(cfg: DictConfig, error: Exception) -> JobReturn:
    """What a point comes to whose process left no result."""
    returned = JobReturn(overrides=list(cfg.hydra.overrides.task), cfg=cfg, status=JobStatus.FAILED)
    returned.return_value = error
    return returned


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the processes that it has started itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _run_dir(cfg: DictConfig) -> Path:
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(cfg)  # for ${hydra:…} in the names of directories
    return Path(str(cfg.hydra.sweep.dir)).absolute() / str(cfg.hydra.sweep.subdir)


def _end(code: int | None, timeout: float | None) -> str:
    if code is None:
        return f"took more than {timeout:g} s (hydra.launcher.timeout)"
    if code >= 0:
        return f"its process ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = ": out of memory, perhaps" if -code == signal.SIGKILL else ""
    return f"its process was killed by signal {-code} ({name}){hint}"


@contextlib.contextmanager
def _terminated_by_signals() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does: by an exception, so that its children are told."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
