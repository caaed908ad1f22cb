import matplotlib
import numpy as np
import pytest
from PIL import Image

from lmxexp.compare import figures
from lmxexp.compare.looks import GREY, Look, _look


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.03, "0.03"), (-0.006, "-0.006"), (500, "500"), (2000, "2k"), (1.5e6, "1.5M"), (3e9, "3G"),
     (1e12, "1T"), (-2500, "-2.5k")],
)  # fmt: skip
def test_short_numbers(value, text):
    assert figures.compact(value) == text


def shown_ticks(low, high, **options):
    fig, (ax,) = figures.figure(3.0)
    ax.plot([low, high], [0, 1])
    figures.ticks(ax, low, high, **options)
    ax.set_xlim(low, high)
    fig.canvas.draw()
    return ax, [t.get_text() for t in ax.get_xticklabels()]


@pytest.mark.parametrize(
    ("low", "high", "scale"),
    [(1, 100, "log"), (10, 190, "linear"), (0, 1000, "linear"), (-1, 100, "linear"), (5, 5, "linear")],
)
def test_the_scale_follows_the_span(low, high, scale):
    ax, _ = shown_ticks(low, high)
    assert ax.get_xscale() == scale
    assert figures.spans_much(low, high) == (scale == "log")


def test_a_scale_asked_for():
    assert shown_ticks(10, 20, log=True)[0].get_xscale() == "log"
    assert shown_ticks(1, 1000, log=False)[0].get_xscale() == "linear"
    assert shown_ticks(0, 1000, log=True)[0].get_xscale() == "linear"  # which has no logarithm


@pytest.mark.parametrize(("low", "high"), [(100, 4000), (1, 900), (20, 1e6), (0.0003, 0.009), (1e12, 1e14), (3, 61)])
def test_labels_are_a_few_numbers_without_exponents(low, high):
    _, labels = shown_ticks(low, high)
    inside = [label for label in labels if label]
    assert 2 <= len(inside) <= 14
    assert not any("e" in label or "^" in label for label in inside)


def test_powers_of_ten():
    assert any("10^{13}" in label for label in shown_ticks(1e12, 1e14, powers=True)[1])
    assert not any("10^" in label for label in shown_ticks(1e12, 2e12, powers=True)[1])


def test_the_legend_names_arms_once_and_the_others_together():
    every = {f"arm{i}": _look(i) for i in range(3)} | {
        f"x{i}": Look(GREY, "-", "solid", ".", "circle", named=False) for i in range(5)
    }
    fig, _ = figures.figure(3.0)
    before = fig.get_figheight()
    figures.legend(fig, list(every), every)
    (legend,) = fig.legends
    assert [t.get_text() for t in legend.get_texts()] == ["arm0", "arm1", "arm2", "5 other arms"]
    assert fig.get_figheight() > before
    figures.legend(fig, ["arm0"], {"arm0": _look(0), "x": every["x0"]}, markers=True)
    handle, rest = fig.legends[1].get_lines()
    assert (handle.get_marker(), handle.get_linestyle()) == ("o", "None")
    assert (rest.get_label(), rest.get_color()) == ("1 other arm", GREY)


@pytest.mark.parametrize("n", [1, 7, 14])
@pytest.mark.parametrize("length", [5, 30, 90])
def test_the_legend_is_inside_the_picture(n, length):
    every = {f"{'a' * length}{i}": _look(i) for i in range(n)}
    fig, (ax,) = figures.figure(3.0)
    figures.legend(fig, list(every), every)
    fig.canvas.draw()
    box, whole = fig.legends[0].get_window_extent(), fig.bbox
    assert box.x0 >= 0
    assert box.x1 <= whole.x1
    assert box.y0 >= 0
    assert box.y1 <= ax.get_tightbbox().y0  # below the panel


def test_a_dollar_is_a_dollar(tmp_path):
    fig, (ax,) = figures.figure(2.0)
    ax.set_title(figures.plain("costs $5 and $6 a_b"))
    figures.save(fig, tmp_path / "a.png")
    assert ax.get_title() == r"costs \$5 and \$6 a_b"


def test_the_users_settings_stay():
    before = dict(matplotlib.rcParams)
    with figures.style():
        assert matplotlib.rcParams["axes.grid"]
        figures.figure(2.0)
    assert dict(matplotlib.rcParams) == before


def test_a_file(tmp_path):
    with figures.style():
        fig, (ax,) = figures.figure(2.0)
        ax.plot([0, 1], [0, 1], color="#FF0000")
        path = figures.save(fig, tmp_path / "a.png")
    image = Image.open(path)
    assert (image.format, image.size) == ("PNG", (1200, 300))
    pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert (pixels[0] == 255).all()
    assert (pixels == [255, 0, 0]).all(1).any()
