"""One look an arm, the same in every picture: colour, dashes and marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmxexp.compare.comparison import Comparison

_COLOURS = ("#000000", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe and Ito's, which colour-blind readers tell apart, without the yellow that vanishes on white. Black, the first,
is the baseline's. Source: M. Okabe and K. Ito, "Color Universal Design", 2008."""
_DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))
"""As matplotlib and as plotly call them. Arms beyond the seventh share a colour and differ in these."""
_MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"))
GREY = "#A9A9A9"
MOST_NAMED = 14
"""Arms with a look of their own: more lines cannot be told apart, whatever their colours."""
VERDICTS = {"better": "#0072B2", "worse": "#D55E00"}
"""Blue and vermilion; all other verdicts are grey."""
_LONGEST = 50


@dataclass(frozen=True)
class Look:
    """How an arm is drawn."""

    colour: str
    dash: str
    plotly_dash: str
    marker: str
    plotly_marker: str
    named: bool = True
    """False: one of the many that are drawn in grey, without an entry of its own in the legend."""


def looks(comparison: Comparison) -> dict[str, Look]:
    """By the arms' labels. Of more than `MOST_NAMED` arms, the baseline and those of the best means are named."""
    rows = comparison.rows
    sign = -1 if comparison.higher_is_better else 1
    others = sorted(rows[1:], key=lambda r: sign * r.sample.mean if r.sample else float("inf"))
    named = {row.arm.label for row in [rows[0], *others[: MOST_NAMED - 1]]}
    result, number = {}, 0
    for row in rows:
        if row.arm.label in named:
            result[row.arm.label] = _look(number)
            number += 1
        else:
            result[row.arm.label] = Look(GREY, "-", "solid", ".", "circle", named=False)
    return result


def naming(all_looks: dict[str, Look], labels: Sequence[str]) -> dict[str, Look]:
    """The looks, with ones of their own for those of the arms that were to be grey."""
    result, number = dict(all_looks), sum(look.named for look in all_looks.values())
    for label in dict.fromkeys(labels):
        if not result[label].named:
            result[label] = _look(number)
            number += 1
    return result


def look_of(label: str, all_looks: dict[str, Look]) -> Look:
    """The look of an arm that elsewhere is called by the same words and its tuned setting."""
    for known, look in all_looks.items():
        if known == label or known.startswith(f"{label} at "):
            return look
    return _look(0)


def shortened(label: str, longest: int = _LONGEST) -> str:
    """Its beginning and its end, where it is too long for a legend."""
    if len(label) <= longest:
        return label
    return f"{label[: longest // 2]}…{label[-(longest - longest // 2 - 1) :]}"


def unnamed(all_looks: dict[str, Look]) -> int:
    """How many arms are drawn in grey."""
    return sum(not look.named for look in all_looks.values())


def _look(number: int) -> Look:
    colour = _COLOURS[number % len(_COLOURS)]
    dash, plotly_dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
    marker, plotly_marker = _MARKERS[number % len(_MARKERS)]
    return Look(colour, dash, plotly_dash, marker, plotly_marker)


def ordered(labels: Sequence[str], all_looks: dict[str, Look]) -> list[str]:
    """Those in grey first, so that the others are drawn over them; the baseline last."""
    named = [label for label in labels if all_looks[label].named]
    return [*(label for label in labels if not all_looks[label].named), *reversed(named)]
