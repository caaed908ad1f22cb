"""What is in the Axes of the curves."""

import warnings

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from lmxexp.compare import curves_plot, figures
from lmxexp.compare.comparison import compare, compare_runs
from lmxexp.compare.curves import AXES, Band, band, difference, shown
from lmxexp.compare.looks import looks
from tests.compare.made_runs import make_sweep, memory_run


def drawn(figure_of, comparison):
    what, every = shown(comparison.arms, comparison.metric), looks(comparison)
    with figures.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = figure_of(comparison, what, every)
        if fig is not None:
            fig.canvas.draw()
    return fig, what, every


def bands_of(ax):
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def test_four_panels(swept):
    fig, what, every = drawn(curves_plot.four_panels, swept)
    assert [ax.get_xlabel() for ax in fig.axes] == list(AXES.values())
    assert [ax.get_ylabel() for ax in fig.axes[::2]] == ["eval/loss (nats per token)"] * 2
    assert fig.get_suptitle() == "eval/loss\nmean over 2 to 3 seeds; band: least to most"
    for ax, axis in zip(fig.axes, AXES, strict=True):
        assert ax.get_xscale() == "log"
        assert len(ax.lines) == len(bands_of(ax)) == 4
        by_colour = {line.get_color(): line for line in ax.lines}
        for arm in swept.arms:
            line, expected = by_colour[every[arm.label].colour], band(arm, what.metric, axis)
            np.testing.assert_array_equal(line.get_xdata(), expected.x)
            np.testing.assert_array_equal(line.get_ydata(), expected.mean)
        edges = {to_hex(c.get_facecolor()[0]): c.get_paths()[0].vertices[:, 1] for c in bands_of(ax)}
        for arm in swept.arms:
            expected = band(arm, what.metric, axis)
            y = edges[every[arm.label].colour.lower()]
            assert (y.min(), y.max()) == pytest.approx((expected.low.min(), expected.high.max()))
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == [arm.label for arm in swept.arms]
    assert [handle.get_color() for handle in legend.get_lines()] == [every[a.label].colour for a in swept.arms]


def test_the_baseline_is_drawn_last_and_black(swept):
    fig, *_ = drawn(curves_plot.four_panels, swept)
    assert all(ax.lines[-1].get_color() == "#000000" for ax in fig.axes)


def test_what_is_late_is_in_the_picture(swept):
    """The fall from the first loss may leave it at the top; nothing of the last four fifths does."""
    fig, what, _ = drawn(curves_plot.four_panels, swept)
    low, high = fig.axes[0].get_ylim()
    for arm in swept.arms:
        b = band(arm, what.metric)
        assert b.low.min() > low
        assert b.high[b.x >= 0.2 * b.x[-1]].max() < high
    assert max(band(arm, what.metric).high.max() for arm in swept.arms) > high
    for ax in fig.axes:
        assert ax.get_xlim()[1] >= max(line.get_xdata()[-1] for line in ax.lines)


def test_limits_of_what_rises():
    b = Band(np.arange(1.0, 11), np.linspace(0.1, 0.9, 10)[None], [1])
    low, high = curves_plot.limits([b], falling=False)
    assert 0.1 < low < b.values[0, 2]
    assert high > 0.9
    flat = Band(np.arange(3.0), np.full((1, 3), 2.0), [1])
    low, high = curves_plot.limits([flat], falling=True)
    assert low < 2 < high
    zero = Band(np.arange(3.0), np.zeros((1, 3)), [1])
    assert curves_plot.limits([zero], falling=True) == (-1.0, 1.0)


def test_axes_that_were_not_logged_have_no_panel(tmp_path):
    points = [
        {"choices": {"attention": kind}, "seed": seed, "eval_every": 20, "record": {"flops_per_token": None}}
        for kind in ("mha", "gqa")
        for seed in (1, 2)
    ]
    fig, *_ = drawn(curves_plot.four_panels, compare([make_sweep(tmp_path / "s", points)]))
    visible = [ax.get_xlabel() for ax in fig.axes if ax.get_visible()]
    assert visible == [label for axis, label in AXES.items() if axis != "flops"]
    assert not fig.axes[3].get_visible()


def test_a_single_seed_has_no_band(tmp_path):
    comparison = compare([make_sweep(tmp_path / "s", [{"choices": {"attention": k}} for k in ("mha", "gqa")])])
    fig, *_ = drawn(curves_plot.four_panels, comparison)
    assert fig.get_suptitle() == "eval/loss\none seed an arm"
    assert [len(bands_of(ax)) for ax in fig.axes] == [0] * 4


def test_nothing_logged_is_no_picture():
    comparison = compare_runs([memory_run({"attention": k}, seed=s) for k in ("mha", "gqa") for s in (1, 2)])
    assert drawn(curves_plot.four_panels, comparison)[0] is None
    assert drawn(curves_plot.differences, comparison)[0] is None


def test_differences(swept):
    fig, what, every = drawn(curves_plot.differences, swept)
    (ax,) = fig.axes
    base, *others = swept.arms
    assert ax.get_ylabel() == "difference (below 0: better)"
    assert ax.get_xlabel() == "steps"
    assert fig.get_suptitle() == (
        "eval/loss\nminus that of attention=mha, the baseline\npaired by seed; band: least to most"
    )
    lines = {line.get_color(): line for line in ax.lines}
    assert len(ax.lines) == 4
    assert len(bands_of(ax)) == 3
    assert set(lines["#000000"].get_ydata()) == {0}
    for arm in others:
        expected = difference(band(arm, what.metric), band(base, what.metric))
        np.testing.assert_array_equal(lines[every[arm.label].colour].get_ydata(), expected.mean)
    low, high = ax.get_ylim()
    assert low < 0 < high


def test_more_is_better_is_said(tmp_path):
    points = [{"choices": {"attention": k}, "seed": s, "eval_every": 20} for k in ("mha", "gqa") for s in (1, 2)]
    comparison = compare([make_sweep(tmp_path / "s", points)], metric="eval/accuracy")
    fig, *_ = drawn(curves_plot.differences, comparison)
    assert fig.axes[0].get_ylabel() == "difference (above 0: better)"


def test_equal_arms_are_a_picture_too(tmp_path):
    points = [{"choices": {"attention": k}, "seed": s, "eval_every": 20} for k in ("mha", "gqa") for s in (1, 2)]
    fig, *_ = drawn(curves_plot.differences, compare([make_sweep(tmp_path / "s", points)]))
    low, high = fig.axes[0].get_ylim()
    assert low < 0 < high


def test_one_arm_has_no_difference(tmp_path):
    comparison = compare([make_sweep(tmp_path / "s", [{"seed": s, "eval_every": 20} for s in (1, 2)])])
    assert drawn(curves_plot.differences, comparison)[0] is None


def test_a_short_run_has_a_linear_axis(tmp_path):
    points = [{"choices": {"attention": k}, "seed": s, "eval_every": 50} for k in ("mha", "gqa") for s in (1, 2)]
    fig, *_ = drawn(curves_plot.four_panels, compare([make_sweep(tmp_path / "s", points)]))
    assert [ax.get_xscale() for ax in fig.axes] == ["linear"] * 4


def test_all_panels_have_one_scale(tmp_path):
    """Speeds differ so that seconds span a factor of 20, which steps do not."""
    points = [
        {"choices": {"attention": k}, "seed": s, "steps": 200, "eval_every": 20, "tokens_per_s": speed}
        for k, speed in (("mha", 1e4), ("gqa", 1e3))
        for s in (1, 2)
    ]
    fig, *_ = drawn(curves_plot.four_panels, compare([make_sweep(tmp_path / "s", points)]))
    assert len({ax.get_xscale() for ax in fig.axes}) == 1


def test_many_arms_are_lines_of_their_own_and_grey_ones():
    runs = [memory_run({}, {"optim.learning_rate": 0.001 * (i + 1)}, seed=1, loss=3 + i / 100) for i in range(20)]
    every = looks(compare_runs(runs))
    assert curves_plot.band_opacity(every) < curves_plot.band_opacity(dict(list(every.items())[:7]))
