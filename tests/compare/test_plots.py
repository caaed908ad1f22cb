"""The PNG files, and what is in the forest and the tuning plot."""

import math
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lmxexp.compare import figures, plots
from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.looks import GREY, VERDICTS, look_of, looks
from tests.compare.conftest import RATES
from tests.compare.made_runs import memory_run


def drawn(make):
    with figures.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = make()
        if fig is not None:
            fig.canvas.draw()
    return fig


def test_files(swept, tuned, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = plots.write(tuned, tmp_path / "new")
    names = ["curves", "differences", "forest", "pareto", "tuning"]
    assert [path.stem for path in written] == names
    monkeypatch.setattr(figures, "save", lambda fig, path: path)
    assert [path.stem for path in plots.write(swept, tmp_path)] == names[:4]
    for path in written:
        image = Image.open(path)
        assert (image.format, image.width) == ("PNG", 1200)
        assert len(image.convert("RGB").getcolors(2**24)) > 10  # it is no blank page
        pixels = np.asarray(image.convert("RGB"))
        # A margin that is white: nothing is cut off at an edge.
        assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])), path


def test_runs_without_lines_have_the_pictures_of_their_ends(tmp_path):
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in ("mha", "gqa") for s in (1, 2)]
    assert [path.name for path in plots.write(compare_runs(runs), tmp_path / "a" / "b")] == ["forest.png", "pareto.png"]


def test_the_forest(swept):
    fig = drawn(lambda: plots.forest(swept))
    (ax,) = fig.axes
    others = swept.rows[1:]
    assert [t.get_text() for t in ax.get_yticklabels()] == [row.arm.label for row in others]
    assert ax.get_xlabel() == "← better        worse →\ndifference in eval/loss, 95 % interval"
    assert fig.get_suptitle() == "arms minus attention=mha, the baseline"
    intervals = {
        line.get_ydata()[0]: line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2
    }
    points = {line.get_ydata()[0]: line for line in ax.lines if line.get_marker() == "o"}
    for place, row in enumerate(others):
        assert intervals[place].get_xdata().tolist() == [row.difference.low, row.difference.high]
        assert points[place].get_xdata()[0] == row.difference.mean
        expected = VERDICTS.get(row.verdict.word, GREY)
        assert to_hex(points[place].get_color()) == to_hex(intervals[place].get_color()) == expected.lower()
    (zero,) = [line for line in ax.lines if list(line.get_xdata()) == [0, 0]]
    assert zero.get_color() == "black"
    low, high = ax.get_xlim()
    assert low < min(0, *(row.difference.low for row in others))
    assert high > max(0, *(row.difference.high for row in others))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first arm at the top
    texts = [t.get_text() for t in ax.texts]
    assert texts == [plots.forest_text(swept, row) for row in others]
    assert texts[0].split("  ")[1] == others[0].verdict.word


def test_an_arm_without_an_interval_is_hollow():
    runs = [memory_run({"attention": "mha"}, loss=3.0), memory_run({"attention": "gqa"}, loss=2.9)]
    (ax,) = drawn(lambda: plots.forest(compare_runs(runs))).axes
    (point,) = [line for line in ax.lines if line.get_marker() == "o"]
    assert (point.get_fillstyle(), to_hex(point.get_color())) == ("none", GREY.lower())


def test_more_is_better_turns_the_arrows():
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s / 10) for k in ("mha", "gqa") for s in (1, 2)]
    (ax,) = drawn(lambda: plots.forest(compare_runs(runs, higher=True))).axes
    assert ax.get_xlabel().startswith("← worse        better →")


def test_one_arm_has_no_forest():
    assert plots.forest(compare_runs([memory_run(seed=s, loss=3 + s / 10) for s in (1, 2)])) is None


def test_of_many_arms_the_forest_has_those_furthest_away():
    runs = [memory_run({}, {"optim.learning_rate": i}, loss=3 + ((i * 7) % 60) / 100) for i in range(1, 61)]
    comparison = compare_runs(runs)
    rows, hidden = plots.forest_rows(comparison)
    assert (len(rows), hidden) == (plots.MOST_ROWS, 59 - plots.MOST_ROWS)
    left = [r for r in comparison.rows[1:] if r not in rows]
    assert max(abs(r.compared.mean) for r in left) <= min(abs(r.compared.mean) for r in rows)
    assert [r for r in comparison.rows if r in rows] == rows
    assert "19 arms in between are left out" in drawn(lambda: plots.forest(comparison)).get_suptitle()


def test_the_tuning_curves(tuned):
    every = looks(tuned)
    fig = drawn(lambda: plots.tuning(tuned, every))
    (ax,) = fig.axes
    assert (ax.get_xscale(), ax.get_xlabel(), ax.get_ylabel()) == ("log", "optim.learning_rate", "eval/loss")
    assert ax.get_xticks().tolist() == list(RATES)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0003", "0.001", "0.003", "0.009"]
    assert len(ax.containers) == 2
    for container, arm in zip(ax.containers, tuned.tuning.arms, strict=True):
        line, _, (bars,) = container.lines
        assert line.get_xdata().tolist() == list(RATES)
        assert line.get_ydata().tolist() == arm.mean
        assert to_hex(line.get_color()) == look_of(arm.label, every).colour.lower()
        ends = [[segment[0][1], segment[1][1]] for segment in bars.get_segments()]
        np.testing.assert_allclose(ends, np.stack([arm.low, arm.high], 1))
    rings = [line for line in ax.lines if line.get_marker() == "o" and line.get_fillstyle() == "none"]
    best = [(arm.optimum.value, arm.optimum.mean) for arm in tuned.tuning.arms]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == best
    crosses = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "x"]
    assert crosses == [[], [0.009]]
    low, high = ax.get_ylim()
    assert all(low < arm.optimum.mean < high for arm in tuned.tuning.arms)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [arm.label for arm in tuned.tuning.arms]


def test_without_tuning_there_is_no_such_picture(swept):
    assert plots.tuning(swept, looks(swept)) is None


@pytest.mark.parametrize("higher", [False, True])
def test_limits_show_the_optimum_and_not_what_barely_converged(higher):
    sign = -1 if higher else 1
    low, high = sorted(plots.tuning_limits([sign * v for v in (3.0, 3.1, 3.2, 90.0)], higher))
    best = sign * 3.0
    assert low < best < high
    assert not low < sign * 90.0 < high
    assert low < sign * 3.2 < high
    assert 0.2 / (high - low) > 0.2  # what is near the optimum has a good part of the picture
    for same in ([2.0, 2.0], [0.0]):
        low, high = plots.tuning_limits(same, higher)
        assert low < same[0] < high
    assert all(map(math.isfinite, plots.tuning_limits([1.0, 2.0], higher)))
