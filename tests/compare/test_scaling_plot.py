import warnings

import numpy as np
import pytest

from lmxexp.compare import figures, scaling_plot
from lmxexp.compare.scaling_runs import fit_runs, formula
from tests.compare.test_scaling_runs import SIZES, STEPS, points, runs_of


def drawn(fits):
    with figures.style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = scaling_plot.figure(fits)
        fig.canvas.draw()
    return fig


def test_a_panel():
    fits = fit_runs(runs_of(points()), bootstrap=50)
    (law,) = fits.laws.values()
    (ax,) = drawn(fits).axes
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("parameters N (total)", "eval/loss")
    assert ax.get_title() == f"all runs\n{formula(law)}"
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    solid = [line for line in ax.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert len(dots) == len(solid) == len(dashed) == len(STEPS)
    for steps, dot, inside, beyond in zip(STEPS, dots, solid, dashed, strict=True):
        tokens = steps * 2e5
        assert sorted(set(dot.get_xdata())) == sorted(SIZES.values())
        for line in (inside, beyond):
            np.testing.assert_allclose(line.get_ydata(), law.predict(line.get_xdata(), tokens))
        assert inside.get_xdata().max() <= max(SIZES.values()) * 1.001 < beyond.get_xdata().max()
        assert dot.get_color().tolist() == inside.get_color().tolist() == beyond.get_color().tolist()
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["D = 100M", "D = 200M", "D = 400M", "D = 800M"]
    (shade,) = ax.collections
    low, high = law.interval(1e7, 8e8)
    edges = shade.get_paths()[0].vertices
    near = edges[np.abs(np.log(edges[:, 0] / 1e7)) < 0.05][:, 1]
    assert (near.min(), near.max()) == pytest.approx((low, high), rel=0.02)
    labels = [t.get_text() for t in ax.get_yticklabels() if t.get_text()]
    assert len(labels) >= 3
    assert not any("10^" in label for label in labels)


def test_one_size_is_drawn_over_tokens():
    fits = fit_runs(runs_of([p for p in points() if p["choices"]["size"] == "10m"]), bootstrap=20)
    (ax,) = drawn(fits).axes
    assert ax.get_xlabel() == "tokens D"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["N = 10M"]


def test_several_designs_have_panels_and_too_many_are_told():
    kinds = [f"k{i}" for i in range(7)]
    made = [p for i, kind in enumerate(kinds) for p in points(kind=kind, shift=i / 10)]
    fig = drawn(fit_runs(runs_of(made), bootstrap=20))
    assert len([ax for ax in fig.axes if ax.get_visible()]) == scaling_plot.MOST_LAWS
    assert fig.get_suptitle().endswith("; 1 more design has a law")
    three = drawn(fit_runs(runs_of(made[: 3 * 32]), bootstrap=20))
    assert [ax.get_visible() for ax in three.axes] == [True] * 3 + [False]
    worst = max(line.get_ydata().max() for ax in three.axes for line in ax.lines if line.get_marker() == "o")
    assert all(ax.get_ylim()[1] > worst for ax in three.axes[:3])


def test_a_file(tmp_path):
    (path,) = scaling_plot.write(fit_runs(runs_of(points()), bootstrap=20), tmp_path / "new")
    assert path.read_bytes().startswith(b"\x89PNG")
