"""How the configurations of two runs differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmxexp.compare.axes import ABSENT, as_written, is_difference

if TYPE_CHECKING:
    from lmxexp.compare.read import Run

_ALSO = ("seed", "data.seed", "data.path")
"""They make no arms, but do make two runs differ."""
_LOOKED_UP = ("model.depths.", "model.widths.")
"""Tables by size; what was found in them is ``model.n_layers`` and ``model.d_ff``."""

Difference = tuple[str, Any, Any]
"""Key, value in the first, value in the second run. A chosen group goes by its name, ``attention``; all else by its
dotted key, ``train.steps``."""


def differences(a: Run, b: Run, *, everything: bool = False) -> list[Difference]:
    """What is configured differently: the choices first, then the rest in the order of the files.

    Args:
        everything: also names, paths, logging and callbacks; the copies of a setting that interpolation leaves all
            over a resolved configuration; and the classes that a choice stands for.
    """
    first, second = a.flat, b.flat
    keys = [*first, *(key for key in second if key not in first)]
    differ = [key for key in keys if not _same(first.get(key, ABSENT), second.get(key, ABSENT))]
    if not everything:
        differ = _essential(differ, first, second)
    choices = [key for key in differ if key.startswith("choice.")]
    rest = [key for key in differ if not key.startswith("choice.")]
    return [(k.removeprefix("choice."), first.get(k, ABSENT), second.get(k, ABSENT)) for k in [*choices, *rest]]


def lines(a: Run, b: Run) -> list[str]:
    """The differences as a table for the terminal."""
    shown = differences(a, b)
    hidden = len(differences(a, b, everything=True)) - len(shown)
    more = f"{hidden} more in names, paths, logging and copies of these; config.yaml of each run has all"
    if not shown:
        return [f"{a.name} and {b.name} are configured alike", *([more] if hidden else [])]
    rows = [("", a.name, b.name), *((key, as_written(x), as_written(y)) for key, x, y in shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    table = [f"{key:<{widths[0]}}  {x:<{widths[1]}}  {y}" for key, x, y in rows]
    return [*table, more] if hidden else table


def _same(x: Any, y: Any) -> bool:
    return x == y and (isinstance(x, bool) == isinstance(y, bool))  # True == 1


def _essential(keys: list[str], first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    chosen = {key.removeprefix("choice.").rpartition("@")[2] for key in keys if key.startswith("choice.")}
    told: set[tuple[str, str]] = set()
    result = []
    for key in sorted(keys, key=_depth):
        leaf = key.rpartition(".")[2]
        x, y = first.get(key, ABSENT), second.get(key, ABSENT)
        copied = _depth(key) > 0 and (leaf, repr((x, y))) in told
        told.add((leaf, repr((x, y))))
        if key.startswith("model.net.") and ABSENT in (x, y):
            copied = copied or _stands_elsewhere(leaf, *((first, x) if y is ABSENT else (second, y)))
        implied = leaf in ("_target_", "_partial_") and chosen & set(key.split("."))
        relevant = is_difference(key) or key in _ALSO
        if relevant and not (copied or implied or key.startswith(_LOOKED_UP)):
            result.append(key)
    order = {key: i for i, key in enumerate(keys)}
    return sorted(result, key=order.__getitem__)


def _depth(key: str) -> int:
    """0 for what is set (``model.d_ff``), more for where it is copied to (``model.ffn.d_ff``, ``model.net.…``)."""
    if key.startswith(("model.net.", "schedule.", "data.")):
        return 2
    return 1 if key.count(".") > 1 else 0


def _stands_elsewhere(leaf: str, flat: dict[str, Any], value: Any) -> bool:
    """Whether the run has the setting outside of ``model.net`` as well, from where it was copied."""
    return any(
        other.rpartition(".")[2] == leaf and _same(flat[other], value)
        for other in flat
        if not other.startswith("model.net.")
    )
