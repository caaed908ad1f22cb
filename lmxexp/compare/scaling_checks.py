"""What points a scaling law can be fitted to, and when the fit says little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

Interval = tuple[float, float]


def distinct(logs: np.ndarray) -> int:
    """How many sizes or budgets there are, by their logarithms. A step of less than 1 % makes no new one: sizes that
    are matched to a budget are nearly equal."""
    return 1 + int((np.diff(np.sort(logs)) > 0.01).sum()) if len(logs) else 0


def check(N: np.ndarray, D: np.ndarray, L: np.ndarray, bootstrap: int) -> None:
    """Refuse points that cannot determine a law.

    Raises:
        ConfigError: what is missing, and how to get it.
    """
    if not N.shape == D.shape == L.shape or N.ndim != 1:
        raise ValueError(f"n_params, n_tokens and loss must be equally long: {N.shape}, {D.shape}, {L.shape}")
    for name, values in (("n_params", N), ("n_tokens", D), ("loss", L)):
        bad = values[~(np.isfinite(values) & (values > 0))]
        if len(bad):
            of = _counted(len(bad), "run")
            _refuse(f"{name}={bad[0]:g} of {of}: a scaling law needs finite, positive numbers; leave them out")
    if bootstrap < 20:
        _refuse(f"bootstrap={bootstrap} must be at least 20 for a 95 % interval")
    sizes, budgets = (distinct(np.log(v)) for v in (N, D))
    what = " of ".join((_counted(len(L), "run"), f"{_counted(sizes, 'size')} and {_counted(budgets, 'token budget')}"))
    if sizes == 2 or budgets == 2 or max(sizes, budgets) < 3:
        _refuse(
            f"{what} cannot determine a scaling law: it takes at least 3 sizes and 3 budgets (size=tiny,10m,50m "
            "train.steps=500,1000,2000), or one of the two fixed and at least 3 of the other"
        )
    needed = 6 if min(sizes, budgets) > 1 else 4
    if len(L) < needed:
        _refuse(
            f"{what} leave nothing to tell the law's error from: it takes at least {needed} runs; add seeds or sizes"
        )
    if min(sizes, budgets) > 1 and abs(np.corrcoef(np.log(N), np.log(D))[0, 1]) > 0.98:
        _refuse(
            f"{what}, but tokens grow with size in all of them, so that the two cannot be told apart: "
            "train some sizes for longer and shorter (train.steps=500,1000,2000 for each size)"
        )


def warnings(names: Sequence[str], fitted: np.ndarray, bounds: np.ndarray, intervals: dict[str, Interval]) -> list[str]:
    """What is not to be trusted in a fit: parameters on a bound, and exponents that may be 0."""
    result = []
    for name, value, (low, high) in zip(names, fitted, bounds, strict=True):
        if value - low < 1e-6 * (high - low):
            result.append(_AT_LOW[name])
        elif high - value < 1e-6 * (high - low):
            result.append(f"{name} sits on its upper bound: these runs do not determine it; add sizes and budgets")
    for name, axis in (("alpha", "sizes"), ("beta", "token budgets")):
        if name in intervals and intervals[name][0] < 1e-3:
            result.append(
                f"the 95 % interval of {name} includes 0: the effect is not established; spread the {axis} wider"
            )
    return result


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


_AT_LOW = {
    "E": "E sits on its lower bound, 0: the losses show no floor yet; add larger sizes and budgets",
    "A": "A sits on its lower bound, 0: size has no visible effect on the loss; spread the sizes wider",
    "B": "B sits on its lower bound, 0: tokens have no visible effect on the loss; spread the token budgets wider",
    "alpha": "alpha sits on its lower bound, 0: size has no visible effect on the loss; spread the sizes wider",
    "beta": "beta sits on its lower bound, 0: tokens have no visible effect on the loss; spread the budgets wider",
}


def _refuse(problem: str) -> NoReturn:
    from lmxexp.cli.errors import refuse

    refuse(problem)
