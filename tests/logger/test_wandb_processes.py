"""W&B in processes that are killed, cut off from the network, or have no terminal."""

from __future__ import annotations

import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lmxexp.logger.jsonl import read_metrics
from lmxexp.logger.wandb_file import read_wandb_file
from tests.logger.logging_process import metrics
from tests.pythonpath import PYTHONPATH

SCRIPT = Path(__file__).with_name("logging_process.py")
pytestmark = pytest.mark.usefixtures("wandb_env")


def _start(*jobs: dict[str, Any], **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), json.dumps(jobs, default=str)]
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=env, text=True, **(options | streams))


def _history(run_dir: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(run_dir.glob("wandb/*/*.wandb")) for row in read_wandb_file(path).history]


def test_killed_again_and_again_it_has_every_step_once(tmp_path):
    """Killed at three points: where W&B had too little, and where the checkpoint was older than what W&B had."""
    run_dir, draw = tmp_path / "run", random.Random()
    steps, resume_step, sent_again, skipped = 600, 0, 0, 0
    for kill_at, age_of_checkpoint in ((draw.randrange(100, 200), 0), (draw.randrange(250, 350), 80), (steps + 1, 0)):
        process = _start({"run_dir": run_dir, "resume_step": resume_step, "steps": steps, "pause": 0.001})
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"{kill_at}\n"):
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.close()
        if process.wait(timeout=60) == 0:
            break
        resume_step = read_metrics(run_dir / "metrics.jsonl")[-1]["step"] - age_of_checkpoint
        mirrored = max((row["_step"] for row in _history(run_dir)), default=0)
        sent_again += max(0, resume_step - mirrored)
        skipped += max(0, mirrored - resume_step)

    assert process.returncode == 0
    assert sent_again > 0
    assert skipped > 0
    truth = read_metrics(run_dir / "metrics.jsonl")
    assert [row["step"] for row in truth] == list(range(1, steps + 1))
    rows = _history(run_dir)
    assert [row["_step"] for row in rows] == list(range(1, steps + 1))
    for row, line in zip(rows, truth, strict=True):
        assert {"step": row["_step"]} | {key: row[key] for key in metrics(1)} == line


# A helper that hangs takes a few hundred rows into the socket before a call blocks; or the end of the run notices it.
@pytest.mark.parametrize(
    ("number", "steps"),
    [
        (signal.SIGKILL, 40),
        pytest.param(signal.SIGSTOP, 40, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 2000, marks=pytest.mark.slow),
    ],
)
def test_its_helper_lost_in_the_middle_stops_nothing(number, steps, tmp_path):
    one, two, errors = tmp_path / "one", tmp_path / "two", tmp_path / "errors"
    began = time.monotonic()
    with errors.open("w") as file:  # no pipe: a helper that hangs would hold it open
        process = _start(
            {"run_dir": one, "steps": steps, "signal_helper_at": 20, "number": number},
            {"run_dir": two, "run_id": "next1", "steps": 10},  # the next job of a sweep, in the same process
            stdout=subprocess.DEVNULL,
            stderr=file,
        )
        process.wait(timeout=90)
    if number == signal.SIGSTOP:
        os.kill(int((one / "helper.pid").read_text()), signal.SIGKILL)
    err = errors.read_text()
    assert process.returncode == 0, err
    assert time.monotonic() - began < (15 if number == signal.SIGKILL else 40)
    assert [row["step"] for row in read_metrics(one / "metrics.jsonl")] == list(range(1, steps + 1))
    assert [row["_step"] for row in _history(two)] == list(range(1, 11))
    warnings = [line for line in err.splitlines() if not line.startswith("W&B: offline")]
    assert len(warnings) == 1, err
    assert warnings[0].startswith(("logger wandb failed and is off", "W&B: cut off after finish_timeout=2 s"))


def test_without_a_login_a_terminal_is_not_asked(tmp_path):
    """On a terminal, where W&B would ask; nobody answers."""
    here, there = pty.openpty()
    process = _start({"run_dir": tmp_path / "run", "steps": 3}, stdin=there, stdout=there, stderr=there)
    os.close(there)
    out, until = b"", time.monotonic() + 30
    while time.monotonic() < until and select.select([here], [], [], max(0, until - time.monotonic()))[0]:
        try:
            chunk = os.read(here, 4096)
        except OSError:  # Linux's end of file
            break
        if not chunk:
            break
        out += chunk
    assert process.wait(timeout=5) == 0
    os.close(here)
    lines = out.decode().splitlines()
    assert lines[0].startswith("W&B: offline, not logged in")
    assert lines[1:4] == ["1", "2", "3"]
    assert len(lines) == 5, lines
    assert len(_history(tmp_path / "run")) == 3


def test_without_a_login_and_without_standard_input(tmp_path):
    process = _start({"run_dir": tmp_path / "run", "steps": 3, "mode": "online"}, stdin=None, preexec_fn=_close_stdin)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    (line,) = err.splitlines()
    assert line.startswith("W&B: not logged in (`wandb login`); logging offline, later: wandb sync ")
    assert len(_history(tmp_path / "run")) == 3


def _close_stdin() -> None:
    os.close(0)


@pytest.mark.parametrize("key_from", ["environment", "netrc"])
def test_a_server_out_of_reach_costs_init_timeout(key_from, tmp_path, wandb_env, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if key_from == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    else:
        netrc = wandb_env / ".netrc"
        netrc.write_text(f"machine 127.0.0.1:9\n  login user\n  password {'0123456789' * 4}\n")
        netrc.chmod(0o600)
    began = time.monotonic()
    process = _start({"run_dir": tmp_path / "run", "steps": 3, "init_timeout": 1.0})
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert time.monotonic() - began < 12
    (line,) = err.splitlines()
    assert line.startswith("W&B: cannot go online (")
    assert "127.0.0.1:9" in line
    assert "logging offline, later: wandb sync" in line
    assert [row["_step"] for row in _history(tmp_path / "run")] == [1, 2, 3]


def test_disabled_it_is_not_even_imported(tmp_path):
    process = _start({"run_dir": tmp_path / "run", "steps": 3, "mode": "disabled"})
    out, err = process.communicate(timeout=30)
    assert json.loads(out.splitlines()[-1])["wandb_imported"] is False
    assert err == ""
    assert not (tmp_path / "run" / "wandb").exists()
