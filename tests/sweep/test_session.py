"""What is said and written of a sweep, whoever conducts it."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from omegaconf import OmegaConf

from lmxexp.sweep import report, session
from lmxexp.sweep.ledger import Entry, Ledger, Outcome, read_outcome, write_outcome
from lmxexp.sweep.session import Followed, Session, SweepCallback
from tests.pythonpath import PYTHONPATH
from tests.sweep.arms import planned

OK = Outcome("id0", "ok", 1.5, overrides=["seed=1"])


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch):
    monkeypatch.setattr(session, "_current", None)
    monkeypatch.setattr(session, "_command", [])
    monkeypatch.setattr(report, "_compare", lambda *args: None)


def begin(directory, target="lmxexp.sweep.sweeper.GridSweeper"):
    node = {"hydra": {"sweep": {"dir": str(directory)}, "sweeper": {"_target_": target}}}
    SweepCallback().on_multirun_start(OmegaConf.create(node))
    assert session._current is not None
    return session._current


OPTUNA = "tests.sweep.test_session.OptunaSweeper"


class OptunaSweeper:
    """Of another project."""


# A sweep of ours


def test_from_the_first_to_the_last_point(tmp_path, monkeypatch, capsys):
    session.command(["/x/lmxexp/__main__.py", "-m", "seed=1,2", "name=a b"])
    assert session.facts() == {"command": "python -m lmxexp -m seed=1,2 'name=a b'"}
    assert not session.began()
    assert session.finish() == 0
    assert type(begin(tmp_path)) is Session
    assert not session.began(), "it may still be refused"
    points = planned(2)
    session.expect(points)
    assert session.began()
    assert "2 points" in capsys.readouterr().out
    write_outcome(tmp_path / points[0].entry.dir, replace(OK, score=2.0))
    write_outcome(tmp_path / points[1].entry.dir, Outcome("id1", "failed", error="no luck", exit_code=1))
    assert session.finish() == 1
    out = capsys.readouterr().out
    assert out.index("[1/2] ok") < out.index("[2/2] failed") < out.index("everything is in"), "all that ended is told"
    assert (tmp_path / "points.csv").read_text().count("\n") == 3
    session.stop()
    assert capsys.readouterr().out == "", "twice does no harm"


def test_another_command_in_this_process_knows_nothing_of_it(tmp_path):
    begin(tmp_path)
    session.expect(planned(1))
    session.stop()
    session.command(["lmxexp"])
    assert not session.began()
    assert session.finish() == 0
    session.expect(planned(1))  # a sweeper by itself, without a command: nobody watches
    assert session.facts() == {"command": "lmxexp"}


def test_the_code_is_that_of_the_points(tmp_path):
    begin(tmp_path)
    points = planned(2)
    session.expect(points)
    for point in points:
        write_outcome(tmp_path / point.entry.dir, OK)
    assert session.finish() == 0


# A sweep of another's


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """A sweep that another sweeper conducts, and what is printed."""
    write_outcome(tmp_path / "0_seed=1", OK)
    write_outcome(tmp_path / "1_seed=2", replace(OK, identity="id1", status="failed", error="earlier", exit_code=1))
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    current = begin(tmp_path, OPTUNA)
    yield current, out
    current.close()


def test_points_of_another_sweeper_are_told_as_they_come(followed, tmp_path):
    current, out = followed
    assert type(current) is Followed
    assert session.began(), "something may have run"
    write_outcome(tmp_path / "2_seed=3", replace(OK, identity="id2", overrides=["seed=3"], status="running"))
    current._follower._look()
    assert out.getvalue() == "", "what was there before is not said again, nor what still runs"
    write_outcome(tmp_path / "2_seed=3", replace(OK, identity="id2", overrides=["seed=3", "lr=1"], score=1 / 3))
    for _ in range(3):
        current._follower._look()
    assert out.getvalue() == "ok       seed=3 lr=1  score 0.3333\n"
    write_outcome(tmp_path / "1_seed=2", Outcome("id1", "failed", error="again", overrides=["seed=2"], attempt=2))
    current.close()
    assert out.getvalue().splitlines()[1:] == ["failed   seed=2", "    again"]


def test_points_are_told_while_the_sweep_goes_on(followed, tmp_path):
    _, out = followed
    write_outcome(tmp_path / "2_seed=3", replace(OK, overrides=["seed=3"]))
    deadline = time.monotonic() + 20
    while "seed=3" not in out.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_sweep_is_written_down_for_what_reads_it(followed, tmp_path):
    current, _ = followed
    write_outcome(tmp_path / "3_seed=4", replace(OK, identity="id3", overrides=["seed=4"]))
    current.close()
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert (content["sweeper"], content["match"], content["tune"]) == ("optuna", None, None)
    assert [(e["num"], e["dir"], e["identity"], e["overrides"]) for e in content["points"]] == [
        (0, "0_seed=1", "id0", ["seed=1"]), (1, "1_seed=2", "id1", ["seed=1"]), (3, "3_seed=4", "id3", ["seed=4"])
    ]  # fmt: skip
    current.close()
    assert len(Ledger(tmp_path).entries) == 3, "each once"


def test_what_a_sweep_of_ours_wrote_there_stays(tmp_path):
    book = Ledger(tmp_path)
    book.add(Entry(0, "0_seed=1", "id0", ["seed=1"], "", {"model.d_ff": 3}))
    book.write({"match": {"kind": "params"}})
    write_outcome(tmp_path / "0_seed=1", OK)
    begin(tmp_path, OPTUNA).close()
    again = Ledger(tmp_path)
    assert again.entries == book.entries
    assert again.facts["match"] == {"kind": "params"}


def test_nothing_is_written_where_nothing_ran(tmp_path):
    begin(tmp_path / "s", OPTUNA)
    assert not session.began()
    session.stop()
    assert not (tmp_path / "s").exists()


HOLDER = """
import sys, time
from pathlib import Path
from lmxexp.sweep.ledger import locked
with locked(Path(sys.argv[1]), who="it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_point_whose_process_is_no_more_was_killed(followed, tmp_path):
    """Unless it is at work still: submitit's jobs outlive the sweep."""
    current, out = followed
    for name in ("2_seed=3", "3_seed=4"):
        write_outcome(tmp_path / name, Outcome("id", "running", overrides=[name[2:]]))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "3_seed=4" / ".lock")],
        env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        process.stdout.readline()
        current.close()
    finally:
        process.kill()
        process.wait()
    killed, at_work = (read_outcome(tmp_path / name) for name in ("2_seed=3", "3_seed=4"))
    assert killed is not None
    assert (killed.status, killed.error, killed.exit_code) == ("killed", "its process ended without a word", 1)
    assert at_work is not None
    assert at_work.status == "running"
    assert out.getvalue().startswith("killed   seed=3\n")
    assert "seed=4" not in out.getvalue()


@pytest.mark.parametrize(
    ("target", "name"),
    [("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "optuna"), ("a.B", "b"), ("Sweeper", "sweep"),
     ("", "sweep")],
)  # fmt: skip
def test_a_sweeper_goes_by_its_name(target, name):
    assert session.mode_of(OmegaConf.create({"sweeper": {"_target_": target}})) == name
