"""Traces and layouts that the page hands to plotly.js."""

import base64
import json
import math

import numpy as np
import pytest

from lmxexp.compare import html_plots, plots
from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.curves import AXES, Band, band, difference, shown
from lmxexp.compare.curves_plot import limits
from lmxexp.compare.looks import looks
from lmxexp.compare.pareto_plot import clouds
from tests.compare.made_runs import memory_run


def unpacked(content):
    """As plotly.js does: typed arrays in base64."""
    assert set(content) == {"dtype", "bdata"}
    return np.frombuffer(base64.b64decode(content["bdata"]), dtype=f"<{content['dtype']}")


def as_json(plot):
    return json.loads(json.dumps(plot, allow_nan=False))


def test_numbers_survive_packing():
    values = np.array([0.0, 1.5, -3.25e-5, 409_600.0, 1.97e12])
    np.testing.assert_allclose(unpacked(html_plots.packed(values)), values, rtol=1e-7)


@pytest.mark.parametrize(("n", "at_most"), [(10, 3), (1000, 150), (5, 5), (3, 9)])
def test_fewer_points_with_the_ends(n, at_most):
    b = Band(np.arange(float(n)), np.random.default_rng(0).random((2, n)), ["a", "b"])
    few = html_plots.downsampled(b, at_most)
    assert len(few.x) == min(n, at_most)
    assert (few.x[0], few.x[-1]) == (0, n - 1)
    np.testing.assert_array_equal(few.values, b.values[:, few.x.astype(int)])


def test_curves(swept):
    what, every = shown(swept.arms), looks(swept)
    found = as_json(html_plots.curves(swept, what, every))
    assert list(found) == list(AXES)
    for axis, plot in found.items():
        assert plot["layout"]["xaxis"]["title"]["text"] == AXES[axis]
        assert plot["layout"]["yaxis"]["title"]["text"] == "eval/loss"
        bands = [band(arm, "eval/loss", axis) for arm in swept.arms]
        assert plot["layout"]["yaxis"]["range"] == list(limits(bands, True))
        named = [trace for trace in plot["data"] if trace.get("showlegend", True)]
        assert {trace["name"] for trace in named} == {arm.label for arm in swept.arms}
        assert len(plot["data"]) == 12  # two edges and a mean each
        for arm, b in zip(swept.arms, bands, strict=True):
            low, high, mean = (trace for trace in plot["data"] if trace["legendgroup"] == arm.label)
            for trace, values in ((low, b.low), (high, b.high), (mean, b.mean)):
                np.testing.assert_allclose(unpacked(trace["x"]), b.x, rtol=1e-6)
                np.testing.assert_allclose(unpacked(trace["y"]), values, rtol=1e-6)
            assert (high["fill"], mean["line"]["color"]) == ("tonexty", every[arm.label].colour)
            assert "fill" not in low


def test_the_legend_is_in_the_order_of_the_table(swept):
    plot = html_plots.curves(swept, shown(swept.arms), looks(swept))["step"]
    named = sorted((t for t in plot["data"] if "name" in t), key=lambda t: t["legendrank"])
    assert [trace["name"] for trace in named] == [arm.label for arm in swept.arms]


def test_differences(swept):
    plot = as_json(html_plots.differences(swept, shown(swept.arms), looks(swept)))
    base, *others = swept.arms
    means = {t["name"]: t for t in plot["data"] if "name" in t}
    assert set(means) == {arm.label for arm in others}
    for arm in others:
        expected = difference(band(arm, "eval/loss"), band(base, "eval/loss"))
        np.testing.assert_allclose(unpacked(means[arm.label]["y"]), expected.mean, rtol=1e-5, atol=1e-7)
    assert plot["layout"]["yaxis"]["title"]["text"] == "difference (below 0: better)"
    assert plot["layout"]["yaxis"]["zeroline"]


def test_the_forest(swept):
    plot = as_json(html_plots.forest(swept))
    assert plot["layout"]["yaxis"]["ticktext"] == [row.arm.label for row in swept.rows[1:]]
    found = {}
    for trace in plot["data"]:
        for i, place in enumerate(trace["y"]):
            x, bars = trace["x"][i], trace["error_x"]
            found[place] = (x - bars["arrayminus"][i], x, x + bars["array"][i], trace["marker"]["color"])
            assert trace["text"][i].endswith(swept.rows[1 + place].verdict.word)
    for place, row in enumerate(swept.rows[1:]):
        low, mean, high, colour = found[place]
        assert (low, mean, high) == pytest.approx((row.difference.low, row.compared.mean, row.difference.high))
        assert colour == plots.verdict_colour(row)


def test_the_fronts(swept):
    plot, every = as_json(html_plots.pareto(swept, looks(swept))), looks(swept)
    for c, suffix, shape in zip(clouds(swept), ("", "2"), ("vh", "hv"), strict=True):
        line, *points = [t for t in plot["data"] if t["xaxis"] == f"x{suffix}"]
        assert (line["x"], line["y"]) == (c.x[c.front, 0].tolist(), c.y[c.front, 0].tolist())
        assert line["line"]["shape"] == shape
        assert len(points) == 4
        for i, point in enumerate(points):
            assert (point["x"], point["y"], point["name"]) == ([c.x[i, 0]], [c.y[i, 0]], c.labels[i])
            assert point["error_y"]["array"][0] == pytest.approx(c.y[i, 2] - c.y[i, 0])
            assert point["error_y"]["arrayminus"][0] == pytest.approx(c.y[i, 0] - c.y[i, 1])
            faded = point["marker"]["color"] != every[c.labels[i]].colour
            assert faded == (i not in c.front)
            assert ("another is better in both" in point["hovertemplate"]) == faded
        assert plot["layout"][f"xaxis{suffix}"]["title"]["text"] == c.cost.label
    in_legend = [t["name"] for t in plot["data"] if t.get("showlegend")]
    assert sorted(in_legend) == sorted(arm.label for arm in swept.arms)  # once each


def test_the_tuning_curves(tuned):
    plot = as_json(html_plots.tuning(tuned, looks(tuned)))
    assert plot["layout"]["xaxis"]["type"] == "log"
    curves = [t for t in plot["data"] if t["mode"] == "lines+markers"]
    rings = [t for t in plot["data"] if t["mode"] == "markers"]
    for arm, curve, ring in zip(tuned.tuning.arms, curves, rings, strict=True):
        assert (curve["name"], curve["x"], curve["y"]) == (arm.label, arm.values, arm.mean)
        ends = np.array(curve["y"]) + np.array(curve["error_y"]["array"])
        np.testing.assert_allclose(ends, arm.high)
        assert (ring["x"], ring["y"]) == ([arm.optimum.value], [arm.optimum.mean])
    assert html_plots.tuning(compare_runs([memory_run(seed=s, loss=3 + s) for s in (1, 2)]), {}) is None


def test_what_has_no_data_is_no_plot():
    runs = [memory_run({"attention": k}, seed=s) for k in ("mha", "gqa") for s in (1, 2)]
    for run in runs:
        for name in ("perf/tokens_per_s", "mem/peak_gb"):
            run.summary.pop(name)
    comparison = compare_runs(runs)
    what, every = shown(comparison.arms), looks(comparison)
    assert html_plots.curves(comparison, what, every) == {}
    assert html_plots.differences(comparison, what, every) is None
    assert html_plots.pareto(comparison, every) is None
    assert html_plots.forest(compare_runs(runs[:2])) is None


def test_labels_are_no_markup():
    runs = [memory_run({"attention": k}, seed=s, loss=3 + s) for k in ("<b>a&b</b>", "mha") for s in (1, 2)]
    comparison = compare_runs(runs)
    every = looks(comparison)
    text = json.dumps([html_plots.forest(comparison), html_plots.pareto(comparison, every)])
    assert "<b>a" not in text
    assert "&lt;b&gt;a&amp;b&lt;/b&gt;" in text


def test_long_curves_of_many_arms_are_thinned():
    bands = {f"a{i}": Band(np.arange(400.0), np.ones((1, 400)), [1]) for i in range(21)}
    every = dict.fromkeys(bands, next(iter(looks(compare_runs([memory_run()])).values())))
    many = html_plots._of_bands(bands, every, "x", "y", None)
    assert {len(unpacked(t["x"])) for t in many["data"]} == {150}
    few = html_plots._of_bands(dict(list(bands.items())[:20]), every, "x", "y", None)
    assert {len(unpacked(t["x"])) for t in few["data"]} == {400}
    assert all(math.isfinite(v) for t in few["data"] for v in unpacked(t["y"]))
