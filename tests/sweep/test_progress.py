"""What is seen of a sweep while it runs: lines in a file, a live table on a terminal."""

import io
import json
import math
import re
import sys
import time

import pytest
from rich.console import Console

from lmxexp.sweep import progress
from lmxexp.sweep.ledger import Outcome, write_outcome
from lmxexp.sweep.progress import Monitor, _duration, _last_line

NAMES = [f"{i}_seed={i}" for i in range(12)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still but when it is told otherwise; nobody looks at the directory by himself."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_EVERY", 3600.0)
    return now


@pytest.fixture
def watch(tmp_path, monkeypatch, clock):
    """``watch(4)``: a monitor of 4 points, and what it prints."""
    monitors = []

    def start(n=12, out=None, overrides=None):
        out = out or io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        monitor = Monitor(tmp_path)
        monitors.append(monitor)
        monitor.expect({name: (overrides or [f"seed={i}"], 50) for i, name in enumerate(NAMES[:n])})
        return monitor, out

    yield start
    for monitor in monitors:
        monitor.stop()


@pytest.fixture
def end(tmp_path):
    """``end(3, "ok", 1.5)``: point 3 has ended."""

    def write(i, status, score=math.inf, seconds=10.0, error=None, attempt=1):
        write_outcome(tmp_path / NAMES[i], Outcome(f"id{i}", status, score, error, seconds=seconds, attempt=attempt))

    return write


@pytest.fixture
def at(tmp_path):
    """``at(3, step=7)``: point 3 runs, and has logged."""

    def log(i, attempt=1, **line):
        write_outcome(tmp_path / NAMES[i], Outcome(f"id{i}", "running", attempt=attempt))
        if line:
            lines = [{"step": 1}, {k.replace("__", "/"): v for k, v in line.items()}]
            file = tmp_path / NAMES[i] / "metrics.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return log


def shown(monitor, width=100):
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(monitor._render())
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


# The live table


def test_the_table(watch, end, at, clock):
    monitor, _ = watch(12)
    assert shown(monitor)[0] == "0 done · 0 running · 0 failed · 12 waiting · 0.0 s"
    end(0, "ok", math.nan, 10)
    end(1, "ok", 1.5, 20)
    end(2, "ok", 2.25, 30)
    end(3, "diverged", seconds=40, error="train/loss is nan")
    end(4, "failed", seconds=50, error="no luck")
    end(5, "killed", seconds=60, error="signal 9")
    end(6, "pruned", 1.0, 70, error="stopped at step 4")
    end(7, "paused", 1.0, 80)
    at(8, step=25, train__loss=3.14159, eval__loss=2.5, perf__tokens_per_s=12345.6)
    at(9)
    monitor._look()
    clock[0] += 75
    # 5 points are left: one paused, two running, two waiting. 7 took 40 s each, and two run at a time.
    head, columns, rule, *rows = shown(monitor)
    assert head == "3 done · 2 running · 3 failed · 1 stopped early · 3 waiting · 1:15, 1:40 left · best 1.5000 seed=1"
    assert columns.split() == ["running", "step", "train/loss", "eval/loss", "tok/s"]
    assert set(rule) <= {" ", "─"}
    assert [row.split() for row in rows] == [["seed=8", "25/50", "3.1416", "2.5000", "12,346"], ["seed=9", "0/50"]]


def test_time_left(watch, end, at):
    monitor, _ = watch(6)
    assert monitor._left() is None, "before the first has ended, nobody knows"
    spent = []
    for i, seconds in enumerate((3.0, 5.0, 13.0)):
        end(i, "ok", 1.0, seconds)
        at(5)
        monitor._look()
        spent.append(seconds)
        assert monitor._left() == pytest.approx((5 - i) * sum(spent) / len(spent))
    at(3)
    at(4)
    monitor._look()
    assert monitor._left() == pytest.approx(3 * 7.0 / 3), "three at a time"
    for i in (3, 4, 5):
        end(i, "ok", 1.0)
    monitor._look()
    assert monitor._left() is None, "nothing is left"


def test_many_at_a_time_are_not_all_shown(watch, at):
    monitor, _ = watch(12)
    for i in range(11):
        at(i, step=i)
    monitor._look()
    lines = shown(monitor)
    assert [line.split()[0] for line in lines[3:]] == [f"seed={i}" for i in range(8)] + ["and"]
    assert lines[-1] == "and 3 more"


@pytest.mark.parametrize("width", [1, 10, 40, 80])
def test_narrow_terminals(watch, end, at, width):
    monitor, _ = watch(3, overrides=["callback=[evaluate,checkpoint]", "model.attention.n_heads=4", "x=[/y]"])
    end(0, "ok", 1.5)
    at(1, step=25, train__loss=3.14159, perf__tokens_per_s=1e9)
    monitor._look()
    lines = shown(monitor, width)
    assert max(map(len, lines)) <= width
    if width >= 40:
        assert lines[0].startswith("1 done · 1 running")


def test_brackets_are_no_markup(watch, end, at):
    monitor, out = watch(2, overrides=["callback=[evaluate]", "x=[/y]", "z=[bold]"])
    at(0, step=3)
    end(1, "ok", 1.5)
    monitor._look()
    assert "callback=[evaluate] x=[/y] z=[bold]   3/50" in shown(monitor, 200)[-1]
    assert "best 1.5000 callback=[evaluate] x=[/y] z=[bold]" in shown(monitor, 200)[0]
    assert "callback=[evaluate] x=[/y] z=[bold]  score 1.5000" in out.getvalue()


@pytest.mark.parametrize("columns", ["40", "120"])
def test_on_a_terminal_it_is_live_and_leaves_it_as_it_was(watch, end, at, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monitor, _ = watch(3, terminal)
    at(1, step=25, train__loss=3.14159)
    end(0, "failed", error="no luck " * 20)
    monitor._look()
    assert monitor._live is not None
    monitor._live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "1 running" in text
    assert "25/50" in text
    assert "[1/3] " in text
    assert "console.log), " not in text, "the table says what is left"
    monitor.stop()
    assert sys.stdout is terminal
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l"), "the cursor is back"
    written = terminal.getvalue()
    monitor.stop()
    assert terminal.getvalue() == written, "twice does no harm"


# In a file


def test_every_end_is_told_at_once_with_its_reason(watch, end, at, tmp_path):
    monitor, out = watch(4)
    end(0, "ok", 1.23456, 75.0)
    monitor._look()
    assert out.getvalue() == f"sweep {tmp_path.name}  4 points\n[1/4] ok       seed=0  score 1.2346  1:15, 3:45 left\n"
    at(1)
    monitor._look()
    end(1, "failed", seconds=1.0, error="RuntimeError: no luck")
    end(2, "diverged", seconds=2.0, error="train/loss is nan")
    monitor._look()
    end(3, "killed", seconds=2.0, error="its process was killed by signal 9 (SIGKILL)")
    monitor.stop()
    assert out.getvalue().splitlines()[2:] == [
        # What is left is known less and less well: the mean of 75 s and 1 s, and of 2 s.
        "[2/4] failed   seed=1  1.0 s",
        f"    RuntimeError: no luck (output: {tmp_path}/1_seed=1/console.log), 1:16 left",
        "[3/4] diverged seed=2  2.0 s",
        "    train/loss is nan, 26 s left",
        "[4/4] killed   seed=3  2.0 s",
        f"    its process was killed by signal 9 (SIGKILL) (output: {tmp_path}/3_seed=3/console.log)",
    ]
    assert "\x1b" not in out.getvalue()


def test_nothing_is_told_twice(watch, end):
    monitor, out = watch(2)
    end(0, "ok", 1.0)
    for _ in range(3):
        monitor._look()
    monitor.stop()
    assert out.getvalue().count("seed=0") == 1


def test_a_long_line_is_not_broken(watch, end):
    monitor, out = watch(1, overrides=["a=" + "x" * 300])
    end(0, "ok", 1.0)
    monitor._look()
    assert len(out.getvalue().splitlines()) == 2


def test_what_was_there_before_is_counted_and_not_told(watch, end, at):
    end(0, "ok", 1.0)
    end(1, "diverged", error="nan")
    end(2, "failed", error="no luck")
    end(3, "running")  # of a sweep that was killed
    end(4, "stopped")
    end(5, "pruned", 2.0, error="fifth")
    monitor, out = watch(7)
    assert out.getvalue().splitlines() == [f"sweep {monitor._directory.name}  7 points, 3 of them done before"]
    monitor._look()
    assert (
        shown(monitor)[0] == "1 done · 0 running · 1 failed · 1 stopped early · 4 waiting · 0.0 s · best 1.0000 seed=0"
    )
    assert monitor._left() is None, "how long they took then, on another machine perhaps, says nothing"
    # They run again: as before, or better.
    at(2, attempt=2)
    at(3, attempt=2, step=9)
    monitor._look()
    assert shown(monitor)[0].startswith("1 done · 2 running · 1 failed · 1 stopped early · 2 waiting")
    end(2, "failed", error="no luck", attempt=2)
    end(3, "ok", 0.5, attempt=2)
    monitor._look()
    assert shown(monitor)[0].startswith("2 done · 0 running · 2 failed · 1 stopped early · 2 waiting")
    told = [line.split()[1:3] for line in out.getvalue().splitlines() if line.startswith("[")]
    assert told == [["failed", "seed=2"], ["ok", "seed=3"]]


def test_a_point_that_pauses_is_told_of_when_it_is_through(watch, end, at):
    monitor, out = watch(2)
    end(0, "paused", 2.0)
    end(1, "paused", 3.0)
    monitor._look()
    assert "seed" not in out.getvalue()
    assert shown(monitor)[0].startswith("0 done · 0 running · 0 failed · 2 waiting")
    end(1, "pruned", 3.0, error="stopped at step 9: 2 of 2 arms, 1 go on")
    monitor._look()
    at(0, attempt=2)
    monitor._look()
    end(0, "ok", 1.0, attempt=2)
    monitor._look()
    told = [line for line in out.getvalue().splitlines()[1:] if "seed" in line]
    assert [line.split()[:3] for line in told] == [["[1/2]", "pruned", "seed=1"], ["[2/2]", "ok", "seed=0"]]
    # Among other arms the other one goes on after all.
    at(1, attempt=2, step=30)
    monitor._look()
    assert shown(monitor)[3].split() == ["seed=1", "30/50"]


def test_it_looks_by_itself(watch, end, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.01)
    _, out = watch(1)
    end(0, "ok", 1.0)
    assert any("seed=0" in out.getvalue() or time.sleep(0.01) for _ in range(500))


# Small parts


def test_the_last_whole_line_of_a_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert _last_line(file) is None
    contents = [("", None), ('{"step": 1}', None), ('{"step": 1}\n', 1), ('{"step": 1}\n{"st', 1), ("no\n", None),
                ('{"step": 1}\n{"step": 2}\n', 2), ("x" * 9000 + '\n{"step": 3}\n', 3)]  # fmt: skip
    for content, step in contents:
        file.write_text(content)
        line = _last_line(file)
        assert (line or {}).get("step") == step, content[-20:]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (59.4, "59 s"), (59.6, "1:00"), (61, "1:01"), (3599.4, "59:59"),
     (3600, "1:00:00"), (90061, "25:01:01")],
)  # fmt: skip
def test_durations(seconds, text):
    assert _duration(seconds) == text
