"""From overrides with several values to the points of a sweep."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from lmxexp.cli.errors import refuse
from lmxexp.cli.short_names import shorten

if TYPE_CHECKING:
    import numpy as np

_NAME_LENGTH = 150
"""File systems take 255 bytes; a point's number and what programs append to a name need some."""

Line = list[str]
"""The overrides of one point, short form: ``["train.steps=50", "attention=gqa", "seed=1"]``."""


def grid(overrides: Sequence[Override]) -> list[Line]:
    """Every combination of the values, the last override's changing fastest; a key that comes twice counts once.

    Raises:
        ConfigError: an interval, of which there are infinitely many values.
    """
    problems = [
        f"{shorten(o.input_line or '')}: an interval has no grid: name values, or hparams_search=random draws some"
        for o in overrides
        if o.is_sweep_override() and not o.is_discrete_sweep()
    ]
    if problems:
        refuse(problems)
    return [list(line) for line in itertools.product(*_by_key(overrides).values())]


def random(overrides: Sequence[Override], n: int, seed: int) -> list[Line]:
    """``n`` distinct draws of the values, independent and uniform; ``tag(log, interval(1e-4, 1e-2))`` in the logarithm.

    Draws of an interval are rounded to four digits. Where all values are discrete and there are no more than ``n``
    combinations, these are all of them.
    """
    if n < 1:
        refuse(f"hydra.sweeper.n_trials={n} must be at least 1")
    discrete = all(o.is_discrete_sweep() for o in overrides if o.is_sweep_override())
    if discrete and len(every := grid(overrides)) <= n:
        return every
    import numpy as np

    rng = np.random.default_rng(seed)
    values = _by_key(overrides)
    keys = {o.get_key_element(): o for o in overrides}
    lines: dict[tuple[str, ...], None] = {}
    for _ in range(100 * n):  # there may be fewer different ones
        if len(lines) == n:
            break
        lines[tuple(_draw(keys[key], choices, rng) for key, choices in values.items())] = None
    return [list(line) for line in lines]


def _by_key(overrides: Sequence[Override]) -> dict[str, list[str]]:
    """``{key: ["key=a", "key=b"]}``, in the order of the first mention; the last mention counts."""
    result: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            texts = override.sweep_string_iterator() if override.is_discrete_sweep() else ()
            result[key] = [shorten(f"{key}={text}") for text in texts]
        elif override.is_delete():
            result[key] = [shorten(override.input_line or key)]
        else:
            result[key] = [shorten(f"{key}={override.get_value_element_as_str()}")]
    return result


def _draw(override: Override, choices: Sequence[str], rng: np.random.Generator) -> str:
    if choices:
        return choices[int(rng.integers(len(choices)))]
    interval: Any = override.value()
    assert isinstance(interval, IntervalSweep)
    assert interval.start is not None
    assert interval.end is not None
    low, high = float(interval.start), float(interval.end)
    key = override.get_key_element()
    if "log" in interval.tags:
        if low <= 0:
            refuse(f"{shorten(override.input_line or key)}: a logarithmic interval begins above 0")
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = rng.uniform(low, high)
    whole = isinstance(interval.start, int) and isinstance(interval.end, int)
    return shorten(f"{key}={round(value) if whole else float(f'{value:.4g}')}")


def varying(lines: Sequence[Line]) -> list[Line]:
    """Of each point the overrides that not all points share."""
    shared = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    return [[text for text in line if text not in shared] for line in lines]


def directory_name(num: int, line: Sequence[str]) -> str:
    """``3_attention=mha,seed=1``: a name that any file system takes."""
    text = re.sub(r"[^\w.,=+@\-\[\]{}()~]", "-", ",".join(line))
    return f"{num}_{text[:_NAME_LENGTH]}".rstrip("_")
