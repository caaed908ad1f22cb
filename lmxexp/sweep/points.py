"""From overrides with several values to the points of a sweep."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException

from lmxexp.cli.errors import refuse
from lmxexp.cli.short_names import shorten

if TYPE_CHECKING:
    import numpy as np

_NAME_LENGTH = 150
"""Bytes. File systems take 255; a point's number and what programs append to a name need some."""

Line = list[str]
"""The overrides of one point, short form: ``["train.steps=50", "attention=gqa", "seed=1"]``."""


def grid(overrides: Sequence[Override]) -> list[Line]:
    """Every combination of the values, the last override's changing fastest.

    A key that comes twice stands where it was named first, with what was said of it last.

    Raises:
        ConfigError: an interval, of which there are infinitely many values; a sweep over no value at all.
    """
    last = _last_mentions(overrides)
    problems = [
        f"{_typed(o)}: an interval has no grid: name values, or hparams_search=random draws some"
        for o in last.values()
        if _is_interval(o)
    ]
    if problems:
        refuse(problems)
    return [list(line) for line in itertools.product(*_choices(last).values())]


def random(overrides: Sequence[Override], n: int, seed: int) -> list[Line]:
    """``n`` distinct draws of the values, independent and uniform; ``tag(log, interval(1e-4, 1e-2))`` in the logarithm.

    Draws of an interval are rounded to four digits, or as many as tell its ends apart; those of ``int(interval(1, 6))``
    are whole numbers, both ends among them. Where all values are discrete and there are no more than ``n``
    combinations, these are all of them.

    Raises:
        ConfigError: fewer than one draw; an interval that nothing can be drawn from; a sweep over no value at all.
    """
    if n < 1:
        refuse(f"hydra.sweeper.n_trials={n} must be at least 1")
    last = _last_mentions(overrides)
    intervals = {key: o for key, o in last.items() if _is_interval(o)}
    if problems := [problem for o in intervals.values() for problem in _interval_problems(o)]:
        refuse(problems)
    choices = _choices(last)
    if not intervals and math.prod(map(len, choices.values())) <= n:
        return [list(line) for line in itertools.product(*choices.values())]
    import numpy as np

    rng = np.random.default_rng(seed)
    names = {key: shorten(f"{key}=") for key in last}
    lines: dict[tuple[str, ...], None] = {}
    for _ in range(100 * n):  # there may be fewer different ones
        if len(lines) == n:
            break
        line = (
            f"{names[key]}{_draw(intervals[key], rng)}" if key in intervals else texts[int(rng.integers(len(texts)))]
            for key, texts in choices.items()
        )
        lines[tuple(line)] = None
    return [list(line) for line in lines]


def _last_mentions(overrides: Sequence[Override]) -> dict[str, Override]:
    return {override.get_key_element(): override for override in overrides}


def _choices(overrides: Mapping[str, Override]) -> dict[str, list[str]]:
    """``{key: ["key=a", "key=b"]}``; nothing for an interval."""
    result: dict[str, list[str]] = {}
    empty = []
    for key, override in overrides.items():
        if override.is_delete():  # `~train.compile=` would delete an empty text alone
            result[key] = [_typed(override)]
        elif not override.is_sweep_override():
            result[key] = [shorten(f"{key}={override.get_value_element_as_str()}")]
        elif _is_interval(override):
            result[key] = []
        else:
            result[key] = [shorten(f"{key}={text}") for text in _texts(override)]
            empty += [] if result[key] else [f"{_typed(override)}: there is no value in it, and so no point"]
    if empty:
        refuse(empty)
    return result


def _texts(override: Override) -> list[str]:
    value: Any = override.value()
    shuffled = getattr(value, "shuffle", False)
    if shuffled:
        override = replace(override, _value=replace(value, shuffle=False))
    try:
        texts = list(override.sweep_string_iterator())
    except (ValueError, HydraException) as error:  # range(1,5,0)
        refuse(f"{_typed(override)}: {' '.join(str(error).split())}")
    if shuffled:  # the same way each time: a command that is given again means the same table
        Random(0).shuffle(texts)
    return texts


def _is_interval(override: Override) -> bool:
    return override.is_sweep_override() and not override.is_discrete_sweep()


def _ends(override: Override) -> tuple[float, float, bool, bool]:
    """Of an interval: its ends, whether whole numbers are drawn, and whether they are drawn in the logarithm."""
    interval: Any = override.value()
    assert isinstance(interval, IntervalSweep)
    assert interval.start is not None
    assert interval.end is not None
    whole = isinstance(interval.start, int) and isinstance(interval.end, int)
    return interval.start, interval.end, whole, "log" in interval.tags


def _interval_problems(override: Override) -> list[str]:
    low, high, _, log = _ends(override)
    if not (math.isfinite(low) and math.isfinite(high)):
        return [f"{_typed(override)}: both ends of an interval must be finite"]
    if low > high:
        return [f"{_typed(override)}: it ends at {high:g}, before it begins at {low:g}; swap them"]
    return [f"{_typed(override)}: a logarithmic interval begins above 0"] if log and low <= 0 else []


def _draw(override: Override, rng: np.random.Generator) -> float:
    low, high, whole, log = _ends(override)
    top = high + 1 if whole else high  # k stands for [k, k + 1)
    value = math.exp(rng.uniform(math.log(low), math.log(top))) if log else rng.uniform(low, top)
    if whole:
        return min(max(math.floor(value), int(low)), int(high))
    digits = 4
    if high > low:  # [1.00012, 1.00019] has no number of four digits
        digits += max(0, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))
    return min(max(float(f"{value:.{digits}g}"), low), high)


def _typed(override: Override) -> str:
    return shorten(override.input_line or override.get_key_element())


def varying(lines: Sequence[Line]) -> list[Line]:
    """Of each point the overrides that not all points share."""
    shared = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    return [[text for text in line if text not in shared] for line in lines]


def directory_name(num: int, line: Sequence[str]) -> str:
    """``3_attention=mha,seed=1``: a name that any file system takes."""
    text = re.sub(r"[^\w.,=+@\-\[\]{}()~]", "-", ",".join(line))
    cut = text.encode()[:_NAME_LENGTH].decode(errors="ignore")  # bytes count, and no letter is cut in two
    return f"{num}_{cut}".rstrip("_")
