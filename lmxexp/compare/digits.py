"""Numbers in as many digits as they can be told apart by."""

from __future__ import annotations

import math


def decimals(spread: float | None, value: float) -> int:
    """Places after the point that show two digits of the spread; without one, five digits of the value."""
    if spread is not None and spread > 0 and math.isfinite(spread):
        return min(8, max(0, 1 - math.floor(math.log10(spread))))
    if value == 0 or not math.isfinite(value):
        return 4
    return min(8, max(0, 4 - math.floor(math.log10(abs(value)))))


def fixed(value: float | None, places: int, *, signed: bool = False) -> str:
    """``3.0123``, with ``signed`` ``+3.0123``; ``-`` for what is not known."""
    if value is None:
        return "-"
    text = f"{value:{'+' if signed else ''},.{places}f}"
    return text.replace("-", "+" if signed else "", 1) if float(text.replace(",", "")) == 0 else text


def count(value: float | None) -> str:
    """``811,648``, or ``1.24G`` where only the size matters; ``-`` for what is not known."""
    if value is None:
        return "-"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:,.0f}"


def chance(p: float | None) -> str:
    """A p value: ``0.013``, ``<0.0001``."""
    if p is None:
        return "-"
    return "<0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.0995 else f"{p:.2f}"


def says_chance(p: float | None) -> str:
    """``p = 0.013``, ``p < 0.0001``."""
    text = chance(p)
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def percent(relative: float | None) -> str:
    """``+1.3 %``; ``0`` where two budgets are the same."""
    if relative is None:
        return "-"
    if abs(relative) < 5e-7:
        return "0"
    return f"{relative * 100:+.2g} %" if abs(relative) < 0.1 else f"{relative * 100:+.0f} %"
