from __future__ import annotations

import io
import logging
import math
import re
import sys

import pytest
from rich.console import Console as Terminal

from lmxexp.logger.console import Console, _Clock, config_tree, duration, summary_table

CONFIG = {
    "seed": 1,
    "resume": None,
    "model": {
        "attention": {"_target_": "lmxexp.model.attention.gqa.GQA", "_partial_": True, "n_heads": 4, "bias": False},
        "d_model": 128,
    },
    "optim": {"betas": [0.9, 0.95], "groups": [{"lr": 0.1}, {"lr": 0.2}], "none": {}},
}
SUMMARY = {
    "status": "ok",
    "eval/loss": 1.25,
    "best": {"eval/loss": 1.125},
    "eval/ppl": 3.4903,
    "eval/bpb": 1.8034,
    "perf/tokens_per_s": 12345.6,
    "perf/mfu": 0.4267,
    "mem/peak_gb": 1.239,
    "params": 2812345,
    "wall_s": 3725.0,
    "note": None,
}


def _render(what, width=100):
    terminal = Terminal(file=io.StringIO(), width=width)
    terminal.print(what)
    return terminal.file.getvalue()


def _train(console, info):
    console.start(info)
    for step in (10, 20):
        metrics = {"tokens": 1.0, "train/loss": 30 / step, "perf/tokens_per_s": 12345.6, "mem/peak_gb": 1.234}
        if step == 20:
            metrics |= {"eval/loss": 1.75, "eval/bpb": math.nan}
        console.log(metrics, step=step)
    console.text("sample", "[bold]def[/bold] f():\n    return \x1b[31m\n", step=20)
    console.finish("ok", SUMMARY)


def test_tree_shows_settings_and_classes():
    lines = [line.rstrip() for line in _render(config_tree(CONFIG, "name")).splitlines()]
    assert lines == [
        "name",
        "├── seed  1",
        "├── resume  null",
        "├── model",
        "│   ├── d_model  128",
        "│   └── attention  lmxexp.model.attention.gqa.GQA",
        "│       ├── n_heads  4",
        "│       └── bias  false",
        "└── optim",
        "    ├── betas  [0.9, 0.95]",
        "    ├── none  {}",
        "    └── groups",
        "        ├── 0",
        "        │   └── lr  0.1",
        "        └── 1",
        "            └── lr  0.2",
    ]


def test_table_shows_every_key_of_the_summary():
    rows = dict(line.split(maxsplit=1) for line in _render(summary_table("name", "diverged", SUMMARY)).splitlines()[2:])
    assert rows == {
        "eval/loss": "1.2500",
        "best.eval/loss": "1.1250",
        "eval/ppl": "3.4903",
        "eval/bpb": "1.8034",
        "perf/tokens_per_s": "12,346",
        "perf/mfu": "42.7%",
        "mem/peak_gb": "1.24 GB",
        "params": "2,812,345",
        "wall_s": "1:02:05",
    }


def test_elsewhere_one_plain_line_per_call(make_info, capsys):
    _train(Console(config_tree=False), make_info(config=CONFIG))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "seed" not in out
    lines = out.splitlines()
    assert lines[0] == "model=llama attention=gqa · 20 steps"
    assert lines[1] == "step 10/20  loss 3.0000  12.3k tok/s  1.23 GB  0:00"
    assert lines[2] == "step 20/20  loss 1.5000  eval/loss 1.7500  eval/bpb nan  12.3k tok/s  1.23 GB  0:00"
    assert lines[3:6] == ["sample  step 20", "  [bold]def[/bold] f():", "      return �[31m"]
    assert lines[8].split() == ["llama-gqa", "ok"]
    assert lines[-1].startswith("everything is in ")
    assert lines[-1].endswith("run")


def test_tree_is_a_choice(make_info, capsys):
    _train(Console(config_tree=True), make_info(config=CONFIG))
    assert "├── seed  1" in capsys.readouterr().out


def _terminal(monkeypatch):
    """A terminal of 100 columns in place of standard output. (No fixture: pytest would put its own in its place.)"""
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return stream


def test_on_a_terminal_a_bar_with_results_above_it(make_info, monkeypatch):
    terminal = _terminal(monkeypatch)
    handler = logging.StreamHandler(sys.stdout)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        console = Console(config_tree=False)
        console.start(make_info(config=CONFIG, resume_step=5))
        assert sys.stdout is not terminal
        assert handler.stream is sys.stdout, "log lines go through the live display"
        console.log({"tokens": 1.0, "train/loss": 3.0, "perf/tokens_per_s": 2e6, "mem/peak_gb": 1.234}, step=10)
        console.log({"tokens": 1.0, "eval/loss": 1.75}, step=15)
        console.log({"tokens": 1.0, "eval/loss": 1.80}, step=16)
        root.warning("a warning")
        console.text("sample", "some text", step=16)
        console._progress.refresh()
        console.finish("stopped", SUMMARY)
    finally:
        root.removeHandler(handler)
    assert sys.stdout is terminal
    assert handler.stream is terminal, "the handler has its own stream again"

    screen = _screen(terminal.getvalue())
    assert screen[0].endswith("20 steps · resumed at 5")
    assert screen[1] == "eval  step 15   loss 1.7500   best"
    assert screen[2] == "eval  step 16   loss 1.8000"
    assert screen[3] == "a warning"
    assert screen[4:6] == ["sample  step 16", "  some text"]
    bar = screen[7]
    assert bar.startswith("16/20 ━━━")
    for part in ("loss 3.0000", "2M tok/s", "1.23 GB", "0:00, 0:00 left"):
        assert part in bar
    assert screen[9].split() == ["llama-gqa", "stopped"]
    assert terminal.getvalue().endswith("run\n")
    assert terminal.getvalue().count("\x1b[?25h") == 1, "the cursor is back"


def test_a_console_that_is_abandoned_lets_the_terminal_go(make_info, monkeypatch):
    terminal = _terminal(monkeypatch)
    console = Console(config_tree=False)
    console.start(make_info())
    console.abandon()
    assert sys.stdout is terminal
    assert "\x1b[?25h" in terminal.getvalue()


def _screen(written):
    """The lines that a terminal shows in the end, without colours."""
    lines, row, column = [""], 0, 0
    for escape, up, erase, end, char in re.findall(r"(\x1b\[(?:(\d*)A|(2K)|[0-9;?]*[a-zA-Z]))|([\r\n])|(.)", written):
        if escape:
            row -= int(up or 1) if escape.endswith("A") else 0
            lines[row] = "" if erase else lines[row]
        elif end:
            column = 0
            row += end == "\n"
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + char + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


def test_time_left_follows_the_pace_since_the_first_log(monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = _Clock(total_steps=100)
    assert clock.left() is None
    now += 60  # compiling
    clock.tick(10)
    assert clock.left() is None
    now += 20
    clock.tick(20)
    assert clock.left() == 160
    now += 5
    assert clock.text() == "1:25, 2:35 left"
    clock.tick(100)
    assert clock.left() is None


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_part_that_was_shown_is_named_afterwards():
    """The palette once, and in the network by name; an empty slot, which has no settings, as it is."""
    part, empty = {"_target_": "mine.Part", "size": 3}, {"_target_": "mine.none"}
    config = {"model": {"net": {"_target_": "mine.Net", "part": part, "slot": empty}, "part": part, "slot": empty}}
    lines = [line.strip("│├└─ ") for line in _render(config_tree(config)).splitlines()]
    assert lines.count("size  3") == 1
    assert "part  = model.part" in lines
    assert lines.count("slot  mine.none") == 2


def test_says_how_full_packed_rows_are(make_info, capsys):
    packing = {"rows": 46784, "efficiency": 0.99996, "cut_documents": 690}
    console = Console(config_tree=False)
    console.start(make_info(record={"data": {"packing": packing}}))
    console.finish("ok", {})
    assert "packed into 46,784 rows, 99.99 % full" in capsys.readouterr().out
