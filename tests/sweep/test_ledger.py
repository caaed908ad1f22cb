"""The record of a sweep: whole or refused, grown and never renumbered; one process at a time."""

import errno
import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lmxexp.interfaces import ConfigError
from lmxexp.sweep import ledger
from lmxexp.sweep.ledger import Entry, Ledger, Outcome, locked, read_outcome, unprune, write_outcome
from tests.pythonpath import PYTHONPATH

ENTRIES = [
    Entry(0, "0_attention=mha", "aaaa", ["attention=mha"], "q0"),
    Entry(1, "1_attention=gqa", "bbbb", ["attention=gqa"], "q1", {"model.d_ff": 352}, {"kind": "params", "value": 9}),
]
OUTCOME = Outcome(
    "aaaa", "paused", 1.25, "why", ["attention=mha", "name='ä\"\n'"], 3.5, 2, 0, 4, {"4": 1.25, "2": math.inf}
)


def written(directory: Path, entries=ENTRIES, **facts) -> Ledger:
    book = Ledger(directory)
    for entry in entries:
        book.add(entry)
    directory.mkdir(exist_ok=True)
    book.write(facts)
    return Ledger(directory)


def test_a_sweep_comes_back_as_it_was_written(tmp_path):
    book = written(tmp_path / "s", command="python -m lmxexp", sweeper="grid")
    assert book.entries == ENTRIES
    assert book.facts["name"] == "s"
    assert book.facts["command"] == "python -m lmxexp"
    assert book.find("bbbb") == ENTRIES[1]
    assert book.find("cccc") is None
    assert book.path(ENTRIES[1]) == tmp_path / "s" / "1_attention=gqa"
    content = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert content["points"][1]["adjusted"] == {"model.d_ff": 352}
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["sweep.json"]


def test_a_directory_without_a_sweep_is_empty(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        book = Ledger(directory)
        assert (book.entries, book.facts, book.next_num()) == ([], {}, 0)


def test_another_command_says_anew_what_it_says_and_no_more(tmp_path):
    first = written(tmp_path, command="first", match={"kind": "params"})
    second = written(tmp_path, [Entry(2, "2", "cccc", [], "")], command="second")
    assert second.entries == [*ENTRIES, Entry(2, "2", "cccc", [], "")]
    assert second.facts == {**first.facts, "command": "second"}


def test_what_another_version_wrote_is_read_as_far_as_it_is_known(tmp_path):
    written(tmp_path)
    content = json.loads((tmp_path / "sweep.json").read_text())
    content["points"][0]["colour"] = "red"
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    assert Ledger(tmp_path).entries == ENTRIES


def test_solutions_are_found_by_what_was_asked(tmp_path):
    book = written(tmp_path)
    assert book.solved("q1") == ENTRIES[1]
    assert book.solved("q0") is None, "it was never solved"
    assert book.solved("") is None


DAMAGED = [
    b"",
    b"[]",
    b"5",
    b"null",
    b"{}",
    b'{"points": null}',
    b'{"points": [{"num": 1}]}',
    b'{"points": [3]}',
    b"\xff",
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_sweep_is_refused_with_the_mend(tmp_path, content):
    (tmp_path / "sweep.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"sweep\.json is damaged: .*sweep=NAME"):
        Ledger(tmp_path)


def test_a_sweep_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path):
    written(tmp_path)
    whole = (tmp_path / "sweep.json").read_bytes()
    for n in range(0, len(whole) - 2, 7):  # the last two bytes are `}` and the end of the line
        (tmp_path / "sweep.json").write_bytes(whole[:n])
        with pytest.raises(ConfigError, match="is damaged"):
            Ledger(tmp_path)


def test_numbers_are_never_given_twice(tmp_path):
    book = written(tmp_path)
    assert book.next_num() == 2
    (tmp_path / "7_left=behind").mkdir()  # of a command that was killed before it wrote the sweep down
    (tmp_path / "9_a_file").touch()
    for name in (".hydra", "x_1", "²_seed=1", "_8"):
        (tmp_path / name).mkdir()
    assert book.next_num() == 8
    book.add(Entry(12, "12", "dddd", [], ""))
    assert book.next_num() == 13


# How a point ended


@pytest.mark.parametrize("score", [0.0, -1.5, 1 / 3, 1e-300, math.inf, -math.inf, math.nan])
def test_an_outcome_comes_back_as_it_was_written(tmp_path, score):
    outcome = replace(OUTCOME, score=score, rungs={"1": score, "3": 2.0})
    write_outcome(tmp_path / "run", outcome)
    assert repr(read_outcome(tmp_path / "run")) == repr(outcome)
    text = (tmp_path / "run" / "outcome.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["outcome.json"]


def test_there_is_no_outcome_where_none_is_or_it_is_cut_short(tmp_path):
    assert read_outcome(tmp_path) is None
    assert read_outcome(tmp_path / "nowhere") is None
    write_outcome(tmp_path, OUTCOME)
    whole = (tmp_path / "outcome.json").read_bytes()
    for n in range(len(whole) - 2):
        (tmp_path / "outcome.json").write_bytes(whole[:n])
        assert read_outcome(tmp_path) is None
    (tmp_path / "outcome.json").write_bytes(whole)
    assert read_outcome(tmp_path) == OUTCOME


FOREIGN = ["[]", "3", "null", "{}", '{"score": 1}', '{"identity": "a", "status": "ok", "score": null}',
           '{"identity": "a", "status": "ok", "score": 1, "rungs": [1]}']  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN)
def test_an_outcome_of_another_make_is_none(tmp_path, content):
    (tmp_path / "outcome.json").write_text(content)
    assert read_outcome(tmp_path) is None


def test_what_a_later_version_adds_to_an_outcome_is_left_alone(tmp_path):
    content = {**asdict(replace(OUTCOME, rungs={})), "colour": "red"}
    (tmp_path / "outcome.json").write_text(json.dumps(content))
    assert read_outcome(tmp_path) == replace(OUTCOME, rungs={})


def test_a_reader_never_sees_half_an_outcome(tmp_path):
    long = replace(OUTCOME, error="x" * 200_000)
    write_outcome(tmp_path, long)
    ended = threading.Event()

    def write():
        for i in range(100):
            write_outcome(tmp_path, replace(long, attempt=i))
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not ended.is_set():
        outcome = read_outcome(tmp_path)
        assert outcome is not None
        seen.add(outcome.attempt)
    writer.join()
    assert len(seen) > 1


def test_results_are_what_a_repetition_would_come_to_again():
    final = {s for s in ("running", "ok", "diverged", "failed", "killed", "stopped", "paused", "pruned")
             if replace(OUTCOME, status=s).final}  # fmt: skip
    assert final == {"ok", "diverged", "pruned"}


def test_what_was_stopped_early_may_go_on(tmp_path):
    unprune(tmp_path)
    assert read_outcome(tmp_path) is None
    write_outcome(tmp_path, replace(OUTCOME, status="pruned", error="third of three"))
    unprune(tmp_path)
    assert read_outcome(tmp_path) == replace(OUTCOME, error=None)
    for status in ("ok", "diverged", "failed", "running"):
        write_outcome(tmp_path, replace(OUTCOME, status=status))
        unprune(tmp_path)
        assert read_outcome(tmp_path) == replace(OUTCOME, status=status)


# One process at a time

HOLDER = """
import sys, time
from pathlib import Path
from lmxexp.sweep.ledger import locked
with locked(Path(sys.argv[1]), who="it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "s" / ".lock")],
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, holder):
    lock = tmp_path / "s" / ".lock"
    began = time.monotonic()
    with (
        pytest.raises(ConfigError, match=rf"the sweep s is in use by another process \(pid {holder.pid}\): wait for"),
        locked(lock, wait=0.3, who="the sweep s"),
    ):
        pytest.fail("it is held")
    assert 0.3 <= time.monotonic() - began < 2
    holder.send_signal(signal.SIGKILL)
    with locked(lock, wait=5, who="the sweep s"):  # the system takes it back
        assert lock.read_text() == f"pid {os.getpid()}"


def test_who_waits_gets_it(tmp_path, holder):
    threading.Timer(0.3, holder.kill).start()
    began = time.monotonic()
    with locked(tmp_path / "s" / ".lock", wait=20, who="it"):
        assert time.monotonic() - began < 10


def test_it_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / ".lock", wait=0, who="it"):
        raise KeyError
    with locked(tmp_path / ".lock", wait=0, who="it"):
        pass


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_lock_that_was_removed_meanwhile_protects_nobody(tmp_path, monkeypatch, what):
    lock, take, calls = tmp_path / "s" / ".lock", fcntl.flock, []

    def flock(file, how):
        if not calls:  # between the opening and the locking of the file, its holder removes it
            lock.unlink()
            if what == "directory":
                lock.parent.rmdir()
        calls.append(how)
        take(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(lock, wait=5, who="it"):
        assert len(calls) == 2
        with pytest.raises(ConfigError, match="in use"), locked(lock, wait=0, who="it"):
            pytest.fail("it is held")


def test_a_disk_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / ".lock", wait=0, who="the sweep s"):
        pass
    assert "the sweep s is not protected from a second process" in capsys.readouterr().err


def test_the_files_of_a_sweep_are_where_others_look_for_them():
    assert (ledger.SWEEP_FILE, ledger.OUTCOME_FILE, ledger.CONSOLE_FILE) == (
        "sweep.json",
        "outcome.json",
        "console.log",
    )
