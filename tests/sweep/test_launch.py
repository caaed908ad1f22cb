"""Launchers that give up because the process of one point died."""

import threading
import time
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from lmxexp.sweep.composing import FrozenLoader
from lmxexp.sweep.ledger import Entry, Outcome, locked, read_outcome, write_outcome
from lmxexp.sweep.planner import Planned
from lmxexp.sweep.sweeper import GridSweeper


class GivesUp:
    """Runs ``at_once`` points at a time; the first is killed, which it says at once, while the others go on."""

    def __init__(self, directory, killed, at_once=2):
        self.directory, self.killed, self.at_once = directory, killed, at_once
        self.begun, self.threads = [], []

    def launch(self, job_overrides, initial_job_idx):
        lines = [line[0] for line in job_overrides]
        for line in lines[: self.at_once]:
            self.begun.append(line)
            ready = threading.Event()
            self.threads.append(threading.Thread(target=self.point, args=(line, ready)))
            self.threads[-1].start()
            ready.wait()
        raise RuntimeError(f"{lines[0]} died")

    def point(self, line, ready):
        run_dir = self.directory / line
        with locked(run_dir / ".lock", who=line):
            running = Outcome(line, "running")
            write_outcome(run_dir, running)
            ready.set()
            if line not in self.killed:
                time.sleep(0.5)
                write_outcome(run_dir, replace(running, status="ok", score=1.0))


def sweeper_of(directory, launcher):
    sweeper = GridSweeper()
    sweeper.launcher, sweeper.loader = launcher, FrozenLoader(None)
    return sweeper


def plan(*names):
    cfg = OmegaConf.create({"sweep": {}, "train": {"steps": 1}})
    hydra = OmegaConf.create({"sweep": {"subdir": ""}})
    return [Planned([name], cfg, hydra, Entry(i, name, name, [name], "")) for i, name in enumerate(names)]


def test_those_that_are_at_work_are_waited_for(tmp_path):
    launcher = GivesUp(tmp_path, killed=("a",))
    sweeper_of(tmp_path, launcher).launch(plan("a", "b"), tmp_path)
    a, b = read_outcome(tmp_path / "a"), read_outcome(tmp_path / "b")
    assert (a.status, a.error, a.exit_code) == ("killed", "RuntimeError: a died", 1)
    assert (b.status, b.error) == ("ok", None)
    assert not any(thread.is_alive() for thread in launcher.threads)


def test_every_point_is_begun_however_many_are_killed(tmp_path):
    names = ["a", "b", "c", "d", "e", "f"]
    launcher = GivesUp(tmp_path, killed=names[:5], at_once=1)
    sweeper_of(tmp_path, launcher).launch(plan(*names), tmp_path)
    assert launcher.begun == names
    assert [read_outcome(tmp_path / n).status for n in names] == ["killed"] * 5 + ["ok"]


def test_a_launcher_that_begins_nothing_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="a died"):
        sweeper_of(tmp_path, GivesUp(tmp_path, killed=(), at_once=0)).launch(plan("a", "b"), tmp_path)
