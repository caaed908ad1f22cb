"""The cells of the table: digits, counts, and what stands where nothing is known."""

import pytest

from lmxexp.compare.cells import cells, failed_heading, failed_lines, headings, number, title
from lmxexp.compare.comparison import compare, compare_runs
from tests.compare.made_runs import make_sweep, memory_run


def comparison_of(arms, **options):
    runs = [
        memory_run({"attention": kind}, seed=s, loss=loss)
        for kind, losses in arms.items()
        for s, loss in enumerate(losses)
    ]
    return compare_runs(runs, **options)


def column(comparison, name):
    return [row[[h.split(" ")[0] for h in headings(comparison)].index(name)] for row in cells(comparison)]


def test_one_row_in_full():
    comparison = comparison_of({"mha": (3.0, 3.05, 2.95), "gqa": (2.98, 3.028, 2.93)})
    base, other = cells(comparison)
    assert len(base) == len(other) == len(headings(comparison))
    s, d = comparison.rows[1].sample, comparison.rows[1].difference
    assert base[:7] == ["attention=mha", "3", "3.0000 ± 0.0500", "[2.8758, 3.1242]", "", "", "baseline"]
    assert other[:7] == [
        "attention=gqa", "3", f"{s.mean:.4f} ± {s.std:.4f}", f"[{s.low:.4f}, {s.high:.4f}]",
        f"{d.mean:.4f} [{d.low:.4f}, {d.high:.4f}]", f"{d.p:.2g}", "better",
    ]  # fmt: skip
    assert other[7:] == ["800,000", "4.8M", "0", "10,000", "0.5"]


@pytest.mark.parametrize(
    ("mha", "gqa", "places"),
    [
        ((3.44381,), (2.44381,), 4),  # one seed: the digits of a loss, not those of the difference
        ((3.44381,), (3.44379,), 6),  # unless it is smaller
        ((3.0, 3.1), (2.0, 2.1), 3),
        ((3.0, 3.0), (3.0, 3.0), 4),
        ((3.0, 3.2), (5000.0, 5900.0), 2),
    ],
)
def test_digits(mha, gqa, places):
    comparison = comparison_of({"mha": mha, "gqa": gqa})
    assert len(number(comparison, 1.0).partition(".")[2]) == places


def test_counts_of_seeds_and_of_runs():
    runs = [memory_run({"attention": "mha"}, seed=s, loss=3 + s / 10) for s in range(3)]
    runs += [memory_run({"attention": "gqa"}, seed=s, loss=3 + s / 10) for s in range(2)]
    runs += [memory_run({"attention": "gqa"}, seed=2, status="killed")]
    runs += [memory_run({"attention": "mqa"}, seed=2, status="pruned")]
    comparison = compare_runs(runs)
    assert column(comparison, "n") == ["3", "2 of 3", "0 of 1"]
    assert column(comparison, "eval/loss")[2] == column(comparison, "95")[2] == "-"
    assert column(comparison, "tokens/s") == ["10,000", "10,000", "-"]
    assert failed_heading(comparison) == "2 runs do not count"
    assert failed_lines(comparison) == ["gqa_2: killed", "mqa_2: stopped early at step 200"]
    assert failed_lines(comparison, 1) == ["gqa_2: killed", "and 1 more"]


def test_several_runs_of_a_seed():
    runs = [
        memory_run({"attention": k}, {"optim.learning_rate": r}, seed=s, loss=3 + s / 10 + r)
        for k in ("mha", "gqa")
        for r in (0.1, 0.2)
        for s in range(3)
    ]
    assert column(compare_runs(runs, by=["attention"]), "n") == ["3 (6 runs)", "3 (6 runs)"]
    runs[-1] = memory_run({"attention": "gqa"}, {"optim.learning_rate": 0.2}, seed=2, status="failed")
    assert column(compare_runs(runs, by=["attention"]), "n") == ["3 (6 runs)", "3 (5 of 6 runs)"]


def test_waiting_points_are_told_last():
    runs = [memory_run(seed=0), memory_run(seed=1, status="waiting"), memory_run(seed=2, status="failed", error="boom")]
    assert failed_lines(compare_runs(runs)) == ["_2: failed: boom", "_1: has not started"]


@pytest.mark.parametrize(
    ("arms", "options", "text"),
    [
        ({"mha": (3.0,)}, {}, "eval/loss, lower is better; 1 run in 1 arm"),
        ({"mha": (3.0, 3.1), "gqa": (3.0,)}, {"higher": True}, "eval/loss, higher is better; 3 runs in 2 arms"),
    ],
)
def test_the_title(arms, options, text):
    assert title(comparison_of(arms, **options)) == text


def test_sweeps_of_one_name_are_named_once(tmp_path):
    for name in ("a", "b"):
        make_sweep(tmp_path / name / "s", [{"seed": 1}])
    assert title(compare([tmp_path])).startswith("s: eval/loss, lower")
