"""What all PNG figures share: no pyplot, so that a notebook's state is not touched; legends outside; plain ticks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxexp.compare.looks import GREY, Look, shortened, unnamed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

WIDTH = 8.0
_DPI = 150
"""1200 pixels wide; the letters are sized to be read at 800."""
_LETTERS, _SMALL_LETTERS, _LONG = 100, 118, 28
"""Of a line of the legend, in its usual and in its small size, and of a label beyond which many take the small one."""
_SETTINGS: dict[Any, Any] = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10, "legend.fontsize": 9.5, "axes.grid": True,
    "grid.alpha": 0.3, "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "text.usetex": False, "axes.axisbelow": True, "figure.facecolor": "white",
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """Within, figures have our settings; afterwards matplotlib has those it had before."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def figure(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of panels, laid out by their texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(fig)
    axes = fig.subplots(rows, columns, squeeze=False, **options)
    return fig, [ax for row in axes for ax in row]


def save(fig: Figure, path: Path) -> Path:
    """Write a figure. ``savefig`` would draw it twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(fig).print_png(path, pil_kwargs={"compress_level": 3})
    return path


def legend(fig: Figure, labels: Sequence[str], looks: dict[str, Look], *, markers: bool = False) -> None:
    """Below the panels: an entry for each named arm, and one for all others."""
    named = [(look, shortened(label)) for label in labels if (look := looks[label]).named]
    handles = [_handle(look, plain(text), markers) for look, text in named]
    if rest := unnamed(looks):
        handles.append(_handle(Look(GREY, "-", "solid", "o", "circle"), f"{rest} other arm{'s' * (rest > 1)}", markers))
    longest = max((len(text) for _, text in named), default=1)
    small = longest > _LONG and len(named) > 4
    columns = max(1, min(len(handles), (_SMALL_LETTERS if small else _LETTERS) // (longest + 7)))
    fig.set_figheight(fig.get_figheight() + (0.19 if small else 0.23) * math.ceil(len(handles) / columns))
    fig.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8 if small else 9.5,
        labelspacing=0.35,
    )  # fmt: skip


def _handle(look: Look, text: str, marker: bool) -> Line2D:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"marker": look.marker, "linestyle": "none"} if marker else {"linestyle": look.dash}
    return Line2D([], [], color=look.colour, label=text, linewidth=2, **style)


def plain(text: str) -> str:
    """A user's words, in which a dollar sign is a dollar sign."""
    return text.replace("$", r"\$")


def ticks(ax: Axes, low: float, high: float, *, log: bool | None = None, powers: bool = False) -> None:
    """The x axis, with numbers such as 50, 2k and 1M.

    Args:
        log: None: logarithmic where it spans much.
        powers: where it is logarithmic, write powers of ten instead.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    log = spans_much(low, high) if log is None else log and 0 < low < high
    if log:
        ax.set_xscale("log")
        decades = high / low
        subs = (1.0, 2.0, 5.0) if decades < 50 else (1.0, 3.0) if decades < 1000 and not powers else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    if not (powers and log):
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def spans_much(low: float, high: float) -> bool:
    """Whether an axis shows more if it is logarithmic."""
    return low > 0 and high / low >= 20


def compact(value: float) -> str:
    """``2k``, ``1.5M``, ``0.03``."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"
