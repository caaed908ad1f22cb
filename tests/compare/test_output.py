"""What is printed and written: read by a parser, or by eye."""

import csv
import io
import json
import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

from lmxexp.compare import files, table
from lmxexp.compare.cells import cells, headings
from lmxexp.compare.comparison import compare, compare_runs
from lmxexp.compare.digits import chance, count, decimals, fixed, percent, says_chance
from lmxexp.compare.words import sentences
from tests.compare.made_runs import make_sweep, memory_run

KINDS = {"mha": (3.0, 800_000, {}), "gqa": (2.96, 811_000, {"model.d_ff": 352}), "sliding": (3.001, 800_000, {})}
NOISE = (0.002, -0.001, 0.0005, -0.002, 0.001, 0.0015, -0.0005, 0.0012, -0.0009)


@pytest.fixture
def sweep(tmp_path):
    points = [
        {"choices": {"attention": kind}, "seed": seed, "adjusted": adjusted, "record": {"params": params},
         "loss": loss + seed / 50 + NOISE[3 * i + seed - 1]}
        for i, (kind, (loss, params, adjusted)) in enumerate(KINDS.items())
        for seed in (1, 2, 3)
    ]  # fmt: skip
    points[-1] |= {"status": "diverged", "error": "the loss of step 120 is nan [a|b]"}
    points += [{"choices": {"attention": "mqa"}, "seed": 1, "status": "pruned"}]
    return make_sweep(tmp_path / "my_sweep", points, match={"kind": "params"})


@pytest.fixture
def comparison(sweep):
    return compare([sweep], effect=0.005)


def shown(comparison, width=100):
    console = Console(width=width, file=io.StringIO(), highlight=False)
    table.show(comparison, console)
    return console.file.getvalue()


def test_the_table_fits_into_100_columns_and_says_all(comparison):
    text = shown(comparison)
    assert max(map(len, text.splitlines())) <= 100
    flat = re.sub(r"\s+", " ", text)
    for part in (
        "my_sweep: eval/loss, lower is better; 8 runs in 4 arms",
        "attention=gqa", "better", "+1.4 %", "811,000", "4.8M", "10,000", "2 of 3",
        "2 runs do not count",
        "8_attention=sliding,seed=3: diverged: the loss of step 120 is nan [a|b]",
        "9_attention=mqa,seed=1: stopped early at step 200",
        "attention=gqa is better than attention=mha: eval/loss differs by -0.04",
        "It has +1.4 % params, which could explain",
        "attention=sliding is not distinguishable from attention=mha",
        "1 of 3 diverged: what is said rests on the others.",
        "1 run without a partner (seed 3) left out of the difference.",
        "seeds an arm would show a difference of 0.005 with a power of 80 %.",
        "p values are Holm's over 2 arms; numbers of seeds hold",
    ):  # fmt: skip
        assert part in flat, part
    lines = text.splitlines()
    assert next(i for i, line in enumerate(lines) if "attention=mha" in line) < next(
        i for i, line in enumerate(lines) if "attention=gqa" in line
    )


def test_markdown_is_a_table(comparison):
    lines = files.markdown(comparison).splitlines()
    rows = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(headings(comparison))}
    assert [row[0] for row in rows[2:]] == [
        "attention=mha", "attention=gqa", "attention=sliding", "attention=mqa",
    ]  # fmt: skip
    assert r"is nan [a\|b]" in "\n".join(lines)


def test_csv_has_all_digits(comparison):
    rows = list(csv.DictReader(io.StringIO(files.as_csv(comparison))))
    assert [row["verdict"] for row in rows] == ["baseline", "better", "not distinguishable", "no result"]
    for row, arm in zip(rows, comparison.rows, strict=True):
        assert row["mean"] == ("" if arm.sample is None else repr(arm.sample.mean))
    assert float(rows[1]["p_holm"]) == comparison.rows[1].p_holm
    assert float(rows[1]["mismatch"]) == pytest.approx(0.01375)
    assert (rows[1]["test"], rows[1]["pairs"], rows[2]["pairs"], rows[2]["failed"]) == ("paired", "3", "2", "1")


def test_json_is_everything(comparison):
    content = json.loads(files.as_json(comparison))
    assert (content["metric"], content["budget"], content["baseline"]) == ("eval/loss", "params", "attention=mha")
    arm = content["arms"][1]
    assert [run["seed"] for run in arm["values"]] == [1, 2, 3]
    assert arm["mean"] == pytest.approx(sum(run["value"] for run in arm["values"]) / 3)
    assert {run["status"] for run in content["failed"]} == {"diverged", "pruned"}
    assert content["sentences"] == sentences(comparison)
    comparison.rows[1].costs["params"] = math.nan
    assert json.loads(files.as_json(comparison))["arms"][1]["params"] is None


def test_runs_that_do_not_count_are_in_every_file(comparison):
    reasons = ("8_attention=sliding,seed=3: diverged: the loss of step 120 is nan", "stopped early at step 200")
    for text in (
        files.markdown(comparison),
        files.as_csv(comparison),
        files.latex(comparison),
        files.as_json(comparison),
    ):
        flat = text.replace("\\", "")
        assert all(reason in flat or reason.partition(": ")[2] in flat for reason in reasons)
    (row,) = [r for r in csv.DictReader(io.StringIO(files.as_csv(comparison))) if r["arm"] == "attention=sliding"]
    assert row["failed_runs"] == f"{reasons[0]} [a|b]"
    assert (row["n"], row["runs"], row["failed"]) == ("2", "2", "1")


def test_the_tuning_curves_are_in_the_files(tuned):
    content = json.loads(files.as_json(tuned))["tuning"]
    assert (content["key"], content["winner"]) == ("optim.learning_rate", tuned.tuning.winner)
    for found, arm in zip(content["arms"], tuned.tuning.arms, strict=True):
        assert (found["arm"], found["optimum"], found["edge"]) == (arm.label, arm.optimum.value, arm.edge)
        assert [t["value"] for t in found["trials"]] == arm.values
        assert [t["mean"] for t in found["trials"]] == arm.mean
        assert [t["diverged"] for t in found["trials"]] == arm.diverged
    rows = [
        [c.strip() for c in line.split("|")[1:-1]] for line in files.markdown(tuned).splitlines() if line[:1] == "|"
    ]
    start = rows.index(["optim.learning_rate", "attention=mha", "attention=gqa"])
    curve = rows[start + 2 : start + 6]
    assert [row[0] for row in curve] == ["0.0003", "0.001", "0.003", "0.009"]
    assert curve[2][1].endswith(r" \*")  # the optimum
    assert curve[1][2].endswith(r" \*")
    assert curve[3][2].endswith("(1 diverged)")
    text = shown(tuned, 120)
    assert "optim.learning_rate  attention=mha" in text
    assert "3.0" in text
    assert json.loads(files.as_json(compare_runs([memory_run(seed=s, loss=3 + s) for s in (1, 2)])))["tuning"] is None


SPECIAL = r"a_b%c&d#e$f{g}h~i^j\k<l>m|n"


def test_latex_is_escaped():
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in (SPECIAL, "mha") for s in (1, 2)]
    text = files.latex(compare_runs(runs))
    (row,) = [line for line in text.splitlines() if line.startswith("attention=a")]
    assert row.startswith(
        r"attention=a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k\textless{}l"
        r"\textgreater{}m\textbar{}n & 2 & "
    )
    assert row.endswith(r" \\")
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
    assert "±" not in "\n".join(body)
    assert not any(re.match(r"\s*\[", cell) for line in body for cell in line.split("&"))
    assert all(line.startswith("%") for line in text.splitlines() if "is not distinguishable" in line)


def test_digits_show_the_difference():
    runs = [
        memory_run({"attention": k}, seed=s, loss=v)
        for k, vs in (("mha", (3.00001, 3.00002, 3.00004)), ("gqa", (3.00003, 3.00005, 3.00006)))
        for s, v in enumerate(vs)
    ]
    first, second = [row[2].split(" ")[0] for row in cells(compare_runs(runs))]
    assert first != second
    large = [
        memory_run({"attention": k}, seed=s, loss=v + s) for k, v in (("mha", 5000.0), ("gqa", 6000.0)) for s in (1, 2)
    ]
    assert cells(compare_runs(large))[0][2] == "5,001.50 ± 0.71"


@pytest.mark.parametrize(
    ("function", "arguments", "text"),
    [
        (fixed, (-0.00001, 3), "0.000"), (fixed, (1234.5, 1), "1,234.5"), (fixed, (None, 2), "-"),
        (count, (811_648,), "811,648"), (count, (4_800_000,), "4.8M"), (count, (1.966e12,), "1.966T"),
        (count, (None,), "-"),
        (chance, (0.00001,), "<0.0001"), (chance, (0.0123,), "0.012"), (chance, (0.5,), "0.50"),
        (chance, (1.0,), "1.00"), (says_chance, (1e-9,), "p < 0.0001"), (says_chance, (0.0123,), "p = 0.012"),
        (percent, (0.0131,), "+1.3 %"), (percent, (-0.5,), "-50 %"), (percent, (0.0,), "0"), (percent, (None,), "-"),
        (decimals, (0.0123, 3.0), 3), (decimals, (12.0, 3.0), 0), (decimals, (None, 3.0), 4), (decimals, (0.0, 0.0), 4),
    ],
)  # fmt: skip
def test_numbers(function, arguments, text):
    assert function(*arguments) == text


def test_signs():
    assert fixed(0.012, 3, signed=True) == "+0.012"
    assert fixed(-0.0000001, 3, signed=True) == "+0.000"


def run_command(*arguments, cwd):
    command = [sys.executable, "-m", "lmxexp.compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={"PATH": "/usr/bin:/bin"})


@pytest.mark.parametrize("name", ["markdown", "csv", "latex"])
def test_a_format_is_all_that_is_printed(sweep, comparison, tmp_path, name):
    done = run_command(sweep, "--format", name, "--effect", "0.005", cwd=tmp_path)
    expected = {"markdown": files.markdown, "csv": files.as_csv, "latex": files.latex}[name](comparison)
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my_sweep"]
    assert not list(sweep.glob("comparison*"))
