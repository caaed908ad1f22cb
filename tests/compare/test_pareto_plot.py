import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex

from lmxexp.compare import figures, pareto_plot
from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.looks import GREY, looks
from tests.compare.made_runs import memory_run
from tests.compare.test_pareto import brute


def drawn(comparison):
    with figures.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = pareto_plot.figure(comparison, looks(comparison))
        if fig is not None:
            fig.canvas.draw()
    return fig


def arms(costs, losses):
    summaries = [{"perf/tokens_per_s": speed, "mem/peak_gb": peak} for speed, peak in costs]
    return [
        memory_run({"attention": f"k{i}"}, seed=s, loss=loss + s / 100, summary=summary)
        for i, (summary, loss) in enumerate(zip(summaries, losses, strict=True))
        for s in (0, 1, 2)
    ]


COSTS, LOSSES = [(100, 1.0), (200, 1.5), (150, 0.5), (50, 0.4)], [3.0, 3.1, 3.2, 3.3]


def test_clouds_are_means_and_ends_over_seeds():
    comparison = compare_runs(arms(COSTS, LOSSES))
    for number, c in enumerate(pareto_plot.clouds(comparison)):
        assert c.labels == [arm.label for arm in comparison.arms]
        np.testing.assert_allclose(c.x, [[cost[number]] * 3 for cost in COSTS])
        np.testing.assert_allclose(c.y, [[loss + 0.01, loss, loss + 0.02] for loss in LOSSES])
        points = np.stack([c.x[:, 0], c.y[:, 0]], 1).tolist()
        assert c.front == brute(points, (c.cost.more_is_better, False))
    assert [c.front for c in pareto_plot.clouds(comparison)] == [[0, 1], [3, 2, 0]]


def test_more_of_the_metric_may_be_better():
    comparison = compare_runs(arms(COSTS, LOSSES), higher=True)
    assert [c.front for c in pareto_plot.clouds(comparison)] == [[3, 2, 1], [3]]
    fig = drawn(comparison)
    assert [ax.get_xlabel() for ax in fig.axes] == [
        "tokens/s in training (better: right and up)",
        "peak memory, GB (better: left and up)",
    ]


def test_equal_costs_have_bars_of_no_length():
    """The mean of three equal numbers can be rounded past them: 0.55 + 0.55 + 0.55 > 3 * 0.55."""
    comparison = compare_runs(arms([(0.55, 0.55), (0.1, 0.1)], [3.0, 3.1]))
    for c in pareto_plot.clouds(comparison):
        for v in (c.x, c.y):
            assert (v[:, 1] <= v[:, 0]).all()
            assert (v[:, 0] <= v[:, 2]).all()
    assert drawn(comparison) is not None


def test_the_picture():
    comparison = compare_runs(arms(COSTS, LOSSES))
    fig, every = drawn(comparison), looks(comparison)
    assert [ax.get_xlabel() for ax in fig.axes] == [
        "tokens/s in training (better: right and down)",
        "peak memory, GB (better: left and down)",
    ]
    assert fig.axes[0].get_ylabel() == "eval/loss"
    for ax, c in zip(fig.axes, pareto_plot.clouds(comparison), strict=True):
        assert len(ax.containers) == 4
        alphas = {}
        for container in ax.containers:
            marker = container.lines[0]
            (i,) = [i for i, x in enumerate(c.x[:, 0]) if x == marker.get_xdata()[0]]
            assert to_hex(marker.get_color()) == every[c.labels[i]].colour.lower()
            assert marker.get_marker() == every[c.labels[i]].marker
            alphas[i] = marker.get_alpha()
        assert {i for i, alpha in alphas.items() if alpha == 1} == set(c.front)
        (line,) = [line for line in ax.lines if line.get_drawstyle().startswith("steps")]
        np.testing.assert_array_equal(line.get_xdata(), c.x[c.front, 0])
        np.testing.assert_array_equal(line.get_ydata(), c.y[c.front, 0])


@pytest.mark.parametrize("more_is_better", [True, False])
def test_the_line_shows_what_is_within_reach(more_is_better):
    """Between two arms of the front stands the loss of the one whose cost one can afford."""
    x, y = ([100, 200], [3.0, 3.1]) if more_is_better else ([1.0, 2.0], [3.1, 3.0])
    costs = [(v, 1.0) if more_is_better else (100, v) for v in x]
    fig = drawn(compare_runs(arms(costs, y)))
    ax = fig.axes[0 if more_is_better else 1]
    (line,) = [line for line in ax.lines if line.get_drawstyle().startswith("steps")]
    # A speed between both is what the faster reaches; with memory between both, what takes less of it.
    assert step_between(line) == pytest.approx((y[1] if more_is_better else y[0]) + 0.01)


def step_between(line):
    """The height of a line of steps between its two points."""
    before, after = line.get_ydata()
    return {"steps-pre": after, "steps-post": before}[line.get_drawstyle()]


def test_many_arms_are_grey_but_for_the_front():
    rng = np.random.default_rng(0)
    costs = [(float(v), float(m)) for v, m in rng.uniform(1, 2, (30, 2))]
    comparison = compare_runs(arms(costs, rng.uniform(3, 3.1, 30).tolist()))
    fig = drawn(comparison)
    for ax, c in zip(fig.axes, pareto_plot.clouds(comparison), strict=True):
        drawn_points = {}
        for container in ax.containers:
            marker = container.lines[0]
            for x in marker.get_xdata():
                drawn_points[float(x)] = to_hex(marker.get_color())
        assert len(drawn_points) == 30
        assert all(drawn_points[float(c.x[i, 0])] != GREY.lower() for i in c.front)
        assert list(drawn_points.values()).count(GREY.lower()) >= 30 - 14 - len(c.front)


def test_a_cost_that_is_the_metric_or_that_one_arm_has_is_left_out():
    comparison = compare_runs(arms(COSTS, LOSSES), metric="mem/peak_gb")
    assert [c.cost.key for c in pareto_plot.clouds(comparison)] == ["perf/tokens_per_s"]
    runs = arms(COSTS[:2], LOSSES[:2])
    for run in runs[:3]:
        run.summary.pop("mem/peak_gb")
    assert [c.cost.key for c in pareto_plot.clouds(compare_runs(runs))] == ["perf/tokens_per_s"]
    for run in runs:
        run.summary.pop("perf/tokens_per_s")
    assert drawn(compare_runs(runs)) is None
