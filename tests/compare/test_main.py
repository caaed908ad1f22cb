"""The command, in this process."""

import json
import subprocess
import sys

import pytest

from lmxexp.compare import to_wandb
from lmxexp.compare.__main__ import main
from tests.compare.made_runs import make_run, make_sweep

FILES = ["comparison.csv", "comparison.json", "comparison.md", "comparison.tex"]


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    points = [
        {"choices": {"attention": kind}, "seed": seed, "loss": loss + seed / 100}
        for kind, loss in (("mha", 3.0), ("gqa", 2.9))
        for seed in (1, 2)
    ]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return make_sweep(tmp_path / "s", points)


def test_a_sweep_gets_its_files(sweep, capsys):
    assert main(["s", "--no-plots"]) == 0
    out = capsys.readouterr().out
    assert "attention=gqa" in out
    assert "written to s: comparison.md, comparison.csv, comparison.tex, comparison.json" in out
    assert sorted(p.name for p in sweep.iterdir() if p.is_file()) == [*FILES, "sweep.json"]
    assert json.loads((sweep / "comparison.json").read_text())["baseline"] == "attention=mha"
    assert main(["s", "--no-plots"]) == 0  # what it wrote is no run


def test_other_paths_get_a_directory(sweep, tmp_path):
    make_run(tmp_path / "one", {"attention": "mqa"})
    assert main(["s", "one", "--no-plots"]) == 0
    assert sorted(p.name for p in (tmp_path / "comparison").iterdir()) == FILES
    assert main(["s", "--out", "elsewhere/deep", "--no-plots"]) == 0
    assert sorted(p.name for p in (tmp_path / "elsewhere" / "deep").iterdir()) == FILES


def test_a_format_into_a_directory_reports_on_stderr(sweep, capsys):
    assert main(["s", "--format", "csv", "--out", "o", "--no-plots"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("arm,metric,n")
    assert captured.out.count("\n") == 3
    assert "written to o" in captured.err


@pytest.mark.parametrize(
    ("arguments", "labels"),
    [
        (["--by", "attention", "--baseline", "gqa"], ["attention=gqa", "attention=mha"]),
        (["--by", "attention,optim"], ["attention=mha optim=adamw", "attention=gqa optim=adamw"]),
        (["--by", "attention", "--by", "size"], ["attention=mha size=tiny", "attention=gqa size=tiny"]),
    ],
)
def test_options_reach_the_comparison(sweep, arguments, labels):
    assert main(["s", "--no-plots", "--out", "o", *arguments]) == 0
    content = json.loads((sweep.parent / "o" / "comparison.json").read_text())
    assert [arm["arm"] for arm in content["arms"]] == labels


def test_numbers_reach_the_comparison(sweep):
    options = ["--metric", "eval/own", "--effect", "0.5", "--budget", "memory", "--sensitivity", "0.1"]
    for run in sweep.glob("*/summary.json"):
        content = json.loads(run.read_text())
        run.write_text(json.dumps(content | {"eval/own": content["eval/loss"]}))
    assert main(["s", "--no-plots", "--out", "o", "--higher-is-better", *options]) == 0
    content = json.loads((sweep.parent / "o" / "comparison.json").read_text())
    assert (content["metric"], content["effect"], content["budget"]) == ("eval/own", 0.5, "memory")
    assert (content["higher_is_better"], content["arms"][1]["sensitivity"]) == (True, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no path was given"),
        (["t"], "t: no such directory; the current directory has no t"),
        (["s", "--metric", "eval/los"], "did you mean eval/loss?"),
        (["s", "--by", "atention"], "did you mean attention?"),
        (["s", "--baseline", "mla"], "--baseline 'mla' is no arm"),
        (["s", "--tune", "optim.lr"], "--tune optim.lr: no run has"),
        (["s", "--diff", "s", "s"], "--diff does not read PATH"),
        (["--diff", "s", "s"], "--diff takes two runs, and s and s hold 4: give the directories of two runs"),
        (["--diff", "s/0_attention=mha,seed=1", "s/0_attention=mha,seed=1"], "are the same one"),
        (["s", "--by", ""], "--by '' names nothing"),
        (["s", "--by", "attention,"], "--by 'attention,' names nothing"),
        (["s", "--out", "s/sweep.json", "--no-plots"], "s/sweep.json cannot be written to (File exists): give another"),
        (
            ["--fit", "scaling", "s"],
            "no design has runs for a law\n  attention=mha: 2 runs of 1 size and 1 token budget cannot",
        ),
        (["--fit", "scaling", "s", "--metric", "eval/accuracy"], "--metric eval/accuracy is no loss"),
        (["--fit", "scaling", "s", "--metric", "best/loss"], "--metric best/loss: no run has it"),
        (["--fit", "scaling", "s", "--by", "atention"], "--by atention: no run has"),
        (["--fit", "scaling", "s", "--effect", "1"], "--fit does not read --effect"),
    ],
)
def test_mistakes(sweep, capsys, arguments, message):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" or "--out" in arguments
    assert captured.err.startswith("lmxexp: error: ")
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (sweep.parent / "comparison").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s", "--bdget", "params"], "unrecognized arguments: --bdget params; did you mean --budget?"),
        (["s", "--bdget=params"], "did you mean --budget?"),
        (
            ["s", "--budget", "parms"],
            "choose from 'params', 'flops', 'tokens', 'steps', 'time', 'memory'); did you mean",
        ),
        (["s", "--format", "markdwn"], "did you mean markdown?"),
        (["s", "--effect", "x"], "argument --effect: invalid float value: 'x'; --help lists the options"),
        (["s", "--zzzzzz"], "unrecognized arguments: --zzzzzz; --help lists the options"),
        (["--diff", "s"], "argument --diff: expected 2 arguments"),
    ],
)
def test_misspelt_options(sweep, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lmxexp: error: ")
    assert message in line


def test_the_difference_of_two_runs(tmp_path, capsys):
    make_run(tmp_path / "a", {"attention": "mha"})
    make_run(tmp_path / "b", {"attention": "gqa"}, {"optim.learning_rate": 0.01})
    assert main(["--diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "attention" in out
    assert "optim.learning_rate" in out


def test_the_pictures_are_written_as_well(sweep, capsys):
    assert main(["s", "--out", "o"]) == 0
    names = {path.name for path in (sweep.parent / "o").iterdir()}
    assert names == {*FILES, "comparison.html", "curves.png", "differences.png", "forest.png", "pareto.png"}
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("written to o: ")
    assert all(name in last for name in names)


@pytest.mark.parametrize(("options", "to_stderr"), [([], False), (["--format", "csv", "--out", "o"], True)])
def test_the_table_goes_to_wandb(sweep, capsys, monkeypatch, options, to_stderr):
    sent = []
    monkeypatch.setattr(to_wandb, "send_beside_runs", lambda c: sent.append(c.metric) or "https://example.org/run")
    assert main(["s", "--no-plots", *options]) == 0
    captured = capsys.readouterr()
    assert sent == ["eval/loss"]
    assert "W&B: https://example.org/run" in (captured.err if to_stderr else captured.out)
    assert main(["s", "--format", "csv"]) == 0  # to a pipe: nothing but the table
    assert len(sent) == 1


def test_ctrl_c_and_a_closed_pipe(sweep, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmxexp.compare.comparison.compare", stop)
    assert main(["s"]) == 130
    command = f"{sys.executable} -m lmxexp.compare s --no-plots | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=sweep.parent)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "1")


def test_a_mistake_of_ours_shows_where(sweep, monkeypatch, capsys):
    monkeypatch.setattr("lmxexp.compare.comparison.compare", lambda *_, **__: 1 / 0)
    assert main(["s"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("lmxexp: error: ZeroDivisionError: division by zero\n")
