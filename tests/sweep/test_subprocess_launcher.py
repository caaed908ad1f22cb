"""Points in processes of their own: killed ones leave the others alone, and a stopped sweep stops its points."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from hydra.core.utils import JobStatus

from lmxexp.interfaces import ConfigError
from lmxexp.sweep import subprocess_launcher
from lmxexp.sweep.gpus import Slots
from lmxexp.sweep.ledger import PointProcessError
from lmxexp.sweep.subprocess_launcher import SubprocessLauncher, _end
from tests.sweep.launching import launch, launcher, start
from tests.sweep.planning import sweep


@pytest.fixture(scope="module")
def hydra(tmp_path_factory):
    with sweep(tmp_path_factory.mktemp("sweep")) as started:
        yield started


@pytest.fixture
def ready(hydra, tmp_path):
    """Hydra for a sweep in a directory of the test's own."""
    hydra.directory = tmp_path / "s"
    hydra.master.hydra.sweep.dir = str(hydra.directory)
    return hydra


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """``worker("exit 3")``: the points' processes are shell scripts, which start in no time."""

    def write(script):
        file = tmp_path / "worker.sh"
        # Where a point's directory is, is known by the job's file: $3, behind `-m lmxexp.sweep.worker`.
        file.write_text(f'#!/bin/bash\ncd "$(dirname "$3")"\n{script}\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(file))
        return file

    return write


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return value


def alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return state != "" and not state.startswith("Z")


# Real points


def test_each_point_has_a_process_and_leaves_the_others_alone(ready):
    kinds = ["returns", "raises", "is killed", "exits", "raises what cannot be sent", "blocked", "returns"]
    ready.directory.mkdir()
    (ready.directory / "5_blocked").touch()
    results = launch(ready, kinds, n_jobs=3)
    assert [r.status for r in results] == [JobStatus.COMPLETED, *[JobStatus.FAILED] * 5, JobStatus.COMPLETED]
    first, last = results[0].return_value, results[-1].return_value
    assert len({first["pid"], last["pid"], os.getpid()}) == 3
    for num, said in ((0, first), (6, last)):
        assert (said["num"], said["seed"], said["cwd"]) == (num, num, os.getcwd())
        assert said["dir"] == str(ready.directory / f"{num}_returns")
    errors = [r._return_value for r in results[1:6]]
    assert repr(errors[0]) == "KeyError('no luck')"
    assert [str(e) for e in errors[1:4]] == [
        "its process was killed by signal 9 (SIGKILL): out of memory, perhaps",
        "its process ended with exit code 3",
        "its process ended with exit code 1",
    ]
    assert all(isinstance(e, PointProcessError) for e in errors[1:4])
    assert isinstance(errors[4], OSError), "a directory that cannot be made spoils no other point"
    for num in (0, 2, 3):
        [run_dir] = ready.directory.glob(f"{num}_*")
        text = (run_dir / "console.log").read_text()
        assert "said to the terminal" in text
        assert "and to stderr" in text
        assert [p.name for p in run_dir.iterdir() if p.name.startswith(".")] in ([], [".hydra"]), "nothing is left"
    assert "it cannot be sent" in (ready.directory / "4_raises_what_cannot_be_sent" / "console.log").read_text()


def test_points_stop_when_the_sweep_is_killed(tmp_path):
    """With a checkpoint, as after SIGTERM: nobody would hear of their result."""
    process = start(tmp_path / "s", "1", "1")
    try:
        waiting = tmp_path / "s" / "0_waits" / "waiting"
        pid = int(wait_for(lambda: waiting.exists() and waiting.read_text()))
        process.kill()
        process.wait()
        wait_for((tmp_path / "s" / "0_waits" / "asked").exists, 20)
        wait_for(lambda: not alive(pid), 10)
    finally:
        process.kill()


# How a process ended


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "its process ended with exit code 0"),
        (137, "its process ended with exit code 137"),
        (-9, "its process was killed by signal 9 (SIGKILL): out of memory, perhaps"),
        (-11, "its process was killed by signal 11 (SIGSEGV)"),
        (-200, "its process was killed by signal 200 (unknown)"),
        (None, "took more than 2.5 s (hydra.launcher.timeout)"),
    ],
)
def test_ends_in_words(code, text):
    assert _end(code, 2.5) == text


@pytest.mark.parametrize(("script", "text"), [("kill -SEGV $$", r"signal 11 \(SIGSEGV\)"), ("exit 7", "exit code 7")])
def test_a_process_without_an_answer(ready, worker, script, text):
    """An answer that an earlier process has left is not taken for its own."""
    worker(script)
    (ready.directory / "0_x").mkdir(parents=True)
    (ready.directory / "0_x" / ".answer.pickle").write_bytes(b"\x80\x04K\x01.")
    [result] = launch(ready, ["x"])
    with pytest.raises(PointProcessError, match=text):
        _ = result.return_value


def test_an_answer_that_cannot_be_read_is_a_failure(ready, worker):
    worker("echo nonsense > .answer.pickle")
    first, second = launch(ready, ["x", "y"])
    assert first.status == second.status == JobStatus.FAILED


def test_a_point_that_takes_too_long_is_killed_with_its_children(ready, worker):
    worker("sleep 100 & echo $! > child; echo $$ > pid; wait")
    began = time.monotonic()
    [result] = launch(ready, ["x"], timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 5
    with pytest.raises(PointProcessError, match=r"took more than 0.5 s \(hydra.launcher.timeout\)"):
        _ = result.return_value
    for name in ("child", "pid"):
        pid = int((ready.directory / "0_x" / name).read_text())
        wait_for(lambda pid=pid: not alive(pid), 5)


# How many at a time


@pytest.mark.parametrize("n_jobs", [1, 3])
def test_n_jobs_at_a_time(ready, worker, n_jobs, tmp_path):
    worker(f"echo 1 >> {tmp_path}/log; sleep 0.3; echo -1 >> {tmp_path}/log")
    launch(ready, ["x"] * 4, n_jobs=n_jobs)
    changes = list(map(int, (tmp_path / "log").read_text().split()))
    running = [sum(changes[: i + 1]) for i in range(len(changes))]
    assert len(changes) == 8
    assert max(running) == n_jobs


def test_points_share_the_cores(ready, worker, monkeypatch):
    worker("env > environment")
    monkeypatch.setattr(os, "cpu_count", lambda: 12)

    def environment(**settings):
        launch(ready, ["x"], **settings)
        lines = (ready.directory / "0_x" / "environment").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    assert environment(n_jobs=4)["OPENBLAS_NUM_THREADS"] == "7", "what the user says counts"
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    assert environment(n_jobs=4)["OPENBLAS_NUM_THREADS"] == "3"
    assert environment(n_jobs=100)["OPENBLAS_NUM_THREADS"] == "1"
    monkeypatch.setattr(subprocess_launcher, "cuda_gpus", list)
    assert environment(n_jobs=4)["LMXEXP_SHARING"] == "4", "and the memory"
    alone = environment()
    assert not {"OPENBLAS_NUM_THREADS", "LMXEXP_SHARING"} & alone.keys()
    assert alone["LMXEXP_PARENT"] == str(os.getpid())
    monkeypatch.setattr(sys, "path", ["", "/somewhere", *sys.path])
    assert environment()["PYTHONPATH"].split(os.pathsep)[:2] == [os.getcwd(), "/somewhere"]


# Stopping

OBEDIENT = """
trap 'echo INT >> signals' INT
trap 'echo TERM >> signals; sleep 0.3; echo done >> signals; exit 0' TERM
echo $$ > pid
while true; do sleep 0.05; done
"""
STUBBORN = OBEDIENT.replace("sleep 0.3; echo done >> signals; exit 0", "true")


def points(directory, file):
    return sorted(path.parent.name for path in directory.glob(f"*/{file}"))


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")])
def test_points_are_asked_once_to_stop_and_waited_for(tmp_path, worker, monkeypatch, number, code, said):
    script = worker(OBEDIENT)
    monkeypatch.undo()
    process = start(tmp_path / "s", "2", "4", str(script))
    try:
        wait_for(lambda: len(points(tmp_path / "s", "pid")) == 2)
        time.sleep(0.2)
        os.killpg(process.pid, number)  # as the terminal does: to all that belong to it
        out, _ = process.communicate(timeout=30)
        assert (process.returncode, out) == (code, said)
        for name in ("0_waits", "1_waits"):
            assert (tmp_path / "s" / name / "signals").read_text() == "TERM\ndone\n"
        assert points(tmp_path / "s", "pid") == ["0_waits", "1_waits"], "the others do not begin"
    finally:
        process.kill()


def test_a_second_ctrl_c_kills_them(tmp_path, worker, monkeypatch):
    script = worker(STUBBORN)
    monkeypatch.undo()
    process = start(tmp_path / "s", "1", "2", str(script))
    try:
        file = tmp_path / "s" / "0_waits" / "pid"
        pid = int(wait_for(lambda: file.exists() and file.read_text()))
        process.send_signal(signal.SIGINT)
        wait_for((tmp_path / "s" / "0_waits" / "signals").exists)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        wait_for(lambda: not alive(pid), 5)
        assert points(tmp_path / "s", "pid") == ["0_waits"]
    finally:
        process.kill()


def test_points_that_do_not_stop_in_time_are_killed(ready, worker, monkeypatch):
    worker(STUBBORN)
    monkeypatch.setattr(subprocess_launcher, "_GRACE_SECONDS", 0.3)
    made, lines = launcher(ready, ["x", "y"], n_jobs=2)
    file = ready.directory / "1_y" / "pid"
    run = SubprocessLauncher._run

    def first_gives_up(self, job):
        if job.run_dir.name == "0_x":
            wait_for(lambda: file.exists() and file.read_text())
            raise KeyboardInterrupt
        return run(self, job)

    monkeypatch.setattr(SubprocessLauncher, "_run", first_gives_up)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.launch(lines, initial_job_idx=0)
    assert time.monotonic() - began < 10
    assert not alive(int(file.read_text()))


def test_nothing_starts_while_the_others_are_told_to_stop(ready, worker):
    worker("touch began")
    made, lines = launcher(ready, ["x"])
    made._stop()
    [result] = made.launch(lines, initial_job_idx=0)
    assert result.status == JobStatus.FAILED
    assert points(ready.directory, "began") == []


def test_signals_are_left_as_they_were(ready, worker):
    worker("exit 0")
    before = signal.getsignal(signal.SIGTERM)
    launch(ready, ["x"])
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"n_jobs": 0}, "hydra.launcher.n_jobs=0 must be at least 1"),
     ({"timeout": 0}, "hydra.launcher.timeout=0 must be a positive number of seconds, or null"),
     ({"timeout": -1.5}, "hydra.launcher.timeout=-1.5 must be")],
)  # fmt: skip
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(ConfigError, match=text):
        SubprocessLauncher(**settings)


def test_each_process_has_one_of_several_gpus(ready, worker):
    worker('echo "$CUDA_VISIBLE_DEVICES" > gpu; sleep 0.3')
    made, lines = launcher(ready, ["returns"] * 5, n_jobs=2)
    made._slots = Slots(2, ["7", "9"])
    made.launch(lines, initial_job_idx=0)
    found = [file.read_text().strip() for file in ready.directory.glob("*/gpu")]
    assert len(found) == 5
    assert set(found) == {"7", "9"}
