"""What differs inside arms that were made by ``--by``, and so is neither averaged nor compared in silence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmxexp.compare.axes import Axis
from lmxexp.compare.read import Run

_MOST = 4
"""Values that a warning lists."""


def varies(axis: Axis, arms: Sequence[Sequence[Run]]) -> bool:
    """Whether an axis takes several values inside any arm."""
    return any(len(_values(axis, runs)) > 1 for runs in arms)


def warnings(axes: Sequence[Axis], arms: Sequence[Sequence[Run]]) -> list[str]:
    """What has to be said about each axis."""
    arms = [runs for runs in arms if runs]
    said = []
    for axis in axes:
        sets = [_values(axis, runs) for runs in arms]
        listed = _listed(dict.fromkeys(term for runs in arms for run in runs if (term := axis.term(run))))
        if not varies(axis, arms):
            if len(set(map(frozenset, sets))) > 1:
                said.append(f"the arms differ in {axis.name} as well ({listed}): the difference may be due to it")
        elif len(set(map(frozenset, sets))) == 1:
            said.append(
                f"inside the arms {axis.name} differs ({listed}): runs are paired by it too, and each seed counts "
                f"once, by its mean over these"
            )
        else:
            said.append(
                f"inside the arms {axis.name} differs, and not alike in all ({listed}): only pairs that are equal in "
                f"it are compared, and the arms' means are over different values of it; --by {axis.name} beside the "
                f"others makes arms of it"
            )
    return said


def _values(axis: Axis, runs: Sequence[Run]) -> set[object]:
    return {axis.values[run] for run in runs if run in axis.values}


def _listed(terms: Iterable[str]) -> str:
    terms = list(terms)
    more = f", … {len(terms)} values in all" if len(terms) > _MOST else ""
    return ", ".join(terms[:_MOST]) + more
