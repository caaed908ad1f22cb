"""What a sweep leaves and prints at its end."""

import csv
import json
from dataclasses import replace

import pytest

from lmxexp.sweep import report
from lmxexp.sweep.ledger import Outcome, write_outcome
from lmxexp.sweep.report import Row, exit_code, rows_of, show, write_points
from tests.card.sweep import Sweep, measured
from tests.sweep.arms import planned

OK = Outcome("id", "ok", 1.5)
SUMMARY = {
    "status": "ok", "error": None, "step": 12, "tokens": 768, "eval/loss": 0.1 + 0.2, "train/loss": 1e-17,
    "best/eval/loss": 2.0, "best/step": None, "perf/tokens_per_s": 1234.5, "perf/first_step_s": 0.1,
    "mem/peak_gb": 0.25, "params": 810112, "seconds": 3.25,
}  # fmt: skip


@pytest.fixture
def row(tmp_path):
    """``row(0, ["seed=1"], OK)``: a point, with its summary on disk."""

    def make(num, overrides, outcome=OK, summary=SUMMARY, sweep="s"):
        run_dir = tmp_path / sweep / f"{num}_point"
        run_dir.mkdir(parents=True, exist_ok=True)
        if summary is not None:
            (run_dir / "summary.json").write_text(json.dumps(summary))
        if outcome is not None:
            write_outcome(run_dir, outcome)
        return Row(num, run_dir, overrides, outcome)

    return make


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Rows


def test_the_points_of_a_plan_in_its_order_begun_or_not(tmp_path):
    points = planned(3)
    write_outcome(tmp_path / points[2].entry.dir, OK)
    write_outcome(tmp_path / "7_of_an_earlier_command", OK)
    rows = rows_of(tmp_path, points[::-1])
    assert [(row.num, row.status, row.overrides) for row in rows] == [
        (2, "ok", ["arm=2", "seed=0"]), (1, "not run", ["arm=1", "seed=0"]), (0, "not run", ["arm=0", "seed=0"])
    ]  # fmt: skip
    assert rows[0].run_dir == tmp_path / points[2].entry.dir
    assert rows_of(tmp_path, []) == []


def test_without_a_plan_the_points_are_those_in_the_directory_by_number(tmp_path):
    for name in ("10_seed=1", "9_seed=2", "²_seed=3", "mine", "2_seed=4"):
        write_outcome(tmp_path / name, replace(OK, overrides=[name.partition("_")[2]]))
    (tmp_path / "3_not_begun").mkdir()
    (tmp_path / "4_half").mkdir()
    (tmp_path / "4_half" / "outcome.json").write_text('{"sco')
    rows = rows_of(tmp_path, None)
    assert [row.num for row in rows] == [-1, -1, 2, 9, 10]
    assert [row.overrides for row in rows[2:]] == [["seed=4"], ["seed=2"], ["seed=1"]]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([], 0),
        ([("ok", 0), ("ok", 0)], 0),
        ([("ok", 0), ("pruned", 0)], 0),
        ([("ok", 0), ("failed", 1), ("ok", 0)], 1),
        ([("diverged", 1)], 1),
        ([("killed", 1)], 1),
        ([("ok", 0), None], 1),  # it did not begin
        ([("ok", 0), ("running", 0)], 1),  # nobody heard of it again
        ([("ok", 0), ("paused", 0)], 1),
        ([("failed", 1), ("stopped", 143), None], 143),
        ([("stopped", 130), None], 130),
    ],
)
def test_exit_code(tmp_path, ends, code):
    outcomes = [None if end is None else Outcome("", end[0], exit_code=end[1]) for end in ends]
    assert exit_code([Row(i, tmp_path, [], outcome) for i, outcome in enumerate(outcomes)]) == code


# points.csv


def test_a_row_has_what_was_chosen_and_what_came_of_it(row, tmp_path):
    rows = [row(0, ["attention=mha", "seed=1"]), row(3, ["attention=gqa", "+new=2"], replace(OK, score=1 / 3))]
    path = write_points(tmp_path, rows)
    assert path == tmp_path / "points.csv"
    first, second = read(path)
    assert list(first) == [
        "point", "attention", "seed", "status", "score", "reason", "step", "tokens", "eval/loss", "train/loss",
        "best/eval/loss", "best/step", "params", "+new",
    ]  # fmt: skip
    assert first == {
        "point": "0", "attention": "mha", "seed": "1", "status": "ok", "score": "1.5", "reason": "", "step": "12",
        "tokens": "768", "eval/loss": "0.30000000000000004", "train/loss": "1e-17", "best/eval/loss": "2.0",
        "best/step": "", "params": "810112", "+new": "",
    }  # fmt: skip
    assert (second["seed"], second["+new"]) == ("", "2")
    assert float(second["score"]) == 1 / 3, "to the last bit"


def test_a_repetition_leaves_the_same_file(row, tmp_path):
    """Whatever its speed, its memory, its attempts and its directory."""
    slow = {**SUMMARY, "perf/tokens_per_s": 1.0, "mem/peak_gb": 9.0, "seconds": 99.0, "perf/mfu": 0.5}
    again = replace(OK, attempt=3, seconds=50.0, rungs={"4": 2.0})
    first = write_points(tmp_path, [row(0, ["seed=1"])]).read_bytes()
    second = write_points(tmp_path, [row(0, ["seed=1"], again, slow, sweep="elsewhere")]).read_bytes()
    assert first == second
    for sweep in ("s", "elsewhere"):
        error = f"train/loss is nan; the last good checkpoint is {tmp_path}/{sweep}/0_point/checkpoints/step_4"
        diverged = Outcome("id", "diverged", error=error)
        [written] = read(write_points(tmp_path, [row(0, ["seed=1"], diverged, sweep=sweep)]))
        assert written["reason"] == "train/loss is nan; the last good checkpoint is checkpoints/step_4"


@pytest.mark.parametrize("text", ["a, b", 'say "no"', "two\nlines", "ä;注意\t|", "'", "=1+1", "", "[1,2]", "x=y=z"])
def test_any_text_comes_back(row, tmp_path, text):
    failed = Outcome("id", "failed", error=text)
    [written] = read(write_points(tmp_path, [row(0, [f"name={text}", "~gone"], failed)]))
    assert (written["name"], written["reason"], written["~gone"]) == (text, text, "")
    assert (written["status"], written["score"]) == ("failed", "inf")


@pytest.mark.parametrize("summary", [None, "half"])
def test_points_without_a_summary_are_rows(row, tmp_path, summary):
    rows = [row(0, ["seed=1"], None, None), row(1, ["seed=2"], Outcome("id", "killed", error="signal 9"), None)]
    if summary == "half":
        (rows[1].run_dir / "summary.json").write_text('{"step": 1')
    written = [tuple(r.values()) for r in read(write_points(tmp_path, rows))]
    assert written == [("0", "1", "not run", "inf", ""), ("1", "2", "killed", "inf", "signal 9")]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["points.csv", "s"]


def test_the_file_is_replaced_in_one_piece(row, tmp_path, monkeypatch):
    before = write_points(tmp_path, [row(0, ["seed=1"])]).read_bytes()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_points(tmp_path, [row(0, ["seed=2"])])
    assert (tmp_path / "points.csv").read_bytes() == before


# On the terminal


@pytest.fixture
def compared(monkeypatch):
    """The sweeps whose arms are compared; the comparison is tested elsewhere."""
    directories = []
    monkeypatch.setattr(report, "_compare", lambda directory, place, console: directories.append(place))
    return directories


def printed(capsys):
    return [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]


def test_points_are_shown_the_best_first(row, tmp_path, capsys, monkeypatch, compared):
    monkeypatch.chdir(tmp_path)
    show(tmp_path / "s", [
        row(0, ["seed=1"], replace(OK, score=2.0)),
        row(1, ["seed=2"], Outcome("", "failed", error="x=[/y] is no [bold] value")),
        row(2, ["seed=3", "callback=[evaluate]"], replace(OK, score=1.0)),
        row(3, ["seed=4"], Outcome("", "pruned", 0.5, "stopped at step 3")),
        row(4, ["seed=5"], None),
    ])  # fmt: skip
    lines = printed(capsys)
    assert [line.split() for line in lines[2:-1]] == [
        ["2", "seed=3", "callback=[evaluate]", "ok", "1.0000"],
        ["0", "seed=1", "ok", "2.0000"],
        ["3", "seed=4", "pruned", "0.5000", "stopped", "at", "step", "3"],
        ["1", "seed=2", "failed", "x=[/y]", "is", "no", "[bold]", "value"],
        ["4", "seed=5", "not", "run"],
    ]
    assert lines[-1].endswith(" s")
    assert compared == ["s"]


def test_one_arm_is_not_compared(row, tmp_path, capsys, compared):
    show(tmp_path / "s", [row(0, ["seed=1"]), row(1, ["seed=2"], None)])
    assert compared == []
    assert printed(capsys)[-1].endswith(str(tmp_path / "s")), "a place elsewhere is told in full"


def test_of_many_points_the_best_and_some_of_the_others_are_shown(row, tmp_path, capsys, compared):
    rows = [row(i, [f"seed={i}"], replace(OK, score=float(i))) for i in range(60)]
    rows += [row(60 + i, [f"seed={60 + i}"], Outcome("", "failed", error="no luck")) for i in range(30)]
    show(tmp_path / "s", rows)
    lines = printed(capsys)
    shown = [int(line.split()[0]) for line in lines[2:] if line.split()[0].isdigit()]
    assert shown == [*range(20), *range(60, 80)]
    assert "and 50 more, in points.csv" in lines
    show(tmp_path / "s", rows[:40])
    assert "more" not in "".join(printed(capsys))


def test_a_narrow_terminal_folds(row, tmp_path, capsys, monkeypatch, compared):
    monkeypatch.setattr(report.os, "isatty", lambda fd: True)
    monkeypatch.setenv("COLUMNS", "40")
    show(tmp_path, [row(0, ["attention=multi_latent_attention"], Outcome("", "failed", error="q" * 90))])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 40
    assert "".join(lines).count("q") == 90, "nothing is cut away"


def test_arms_that_cannot_be_compared_do_not_spoil_the_sweep(row, tmp_path, capsys, monkeypatch):
    def compare(paths):
        assert paths == [tmp_path / "s"]
        raise ZeroDivisionError("no luck")

    monkeypatch.setattr("lmxexp.compare.comparison.compare", compare)
    show(tmp_path / "s", [row(0, ["seed=1"]), row(1, ["seed=2"])])
    out, err = capsys.readouterr()
    assert "the arms could not be compared: ZeroDivisionError: no luck" in err
    assert out.splitlines()[-1].startswith("everything is in ")


def test_points_of_several_tasks_are_a_card_and_not_compared(tmp_path, capsys, compared):
    sweep = Sweep(tmp_path / "s")
    for mixer, loss, accuracy in (("mha", 2.0, 0.99), ("linear", 2.5, 0.25)):
        sweep.add(mixer, "lm", loss, speeds=measured())
        sweep.add(mixer, "copying", accuracy)
    show(sweep.path, [Row(p["num"], sweep.path / p["dir"], p["overrides"], OK) for p in sweep.points])
    lines = printed(capsys)
    assert compared == []
    [header] = [line for line in lines if "copying %" in line]
    assert [cell.strip() for cell in header.split("|")[1:5]] == ["mixer", "params", "lm loss", "copying %"]
    assert any(line.startswith("| linear") and "25.0" in line for line in lines)
    assert f"pictures and files: python -m lmxexp.card {sweep.path}" in lines


def test_a_card_that_cannot_be_made_does_not_spoil_the_sweep(row, tmp_path, capsys):
    show(tmp_path / "s", [row(0, ["task=lm"]), row(1, ["task=copying"])])
    out, err = capsys.readouterr()
    assert "the card could not be made: " in err
    assert out.splitlines()[-1].startswith("everything is in ")
