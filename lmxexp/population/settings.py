"""Numbers in which the optimizers and losses of members differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Settings = dict[str, Any]
"""By the name of an attribute: what `differing` found."""


class NotMappable(Exception):
    """Members that cannot be trained in one step; the message says why."""


@dataclass(frozen=True)
class OwnNumber:
    """A number of which each member has its own, in the place of a Python number.

    What optimizers make of their settings is rounded once from Python's double precision, as theirs is: computed in
    fp32, ``1 - 0.999`` would be wrong in the fifth digit.
    """

    value: mx.array
    rest: mx.array
    """``1 - value``."""
    log_value: mx.array

    @classmethod
    def of(cls, numbers: Sequence[float]) -> OwnNumber:
        logs = [math.log(x) if x > 0 else -math.inf for x in numbers]
        return cls(*(mx.array(column, mx.float32) for column in (list(numbers), [1 - x for x in numbers], logs)))

    def __mlx_array__(self) -> mx.array:
        """For MLX, where an array stands on the left."""
        return self.value

    def log(self) -> mx.array:
        return self.log_value

    def __bool__(self) -> bool:
        return True  # `if self.weight_decay:`; adding nothing does no harm

    def __add__(self, other: Any) -> mx.array:
        return other + self.value

    def __mul__(self, other: Any) -> mx.array:
        return other * self.value

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> mx.array:
        return self.value / other

    def __rtruediv__(self, other: Any) -> mx.array:
        return other / self.value

    def __rsub__(self, other: Any) -> mx.array:
        return self.rest if isinstance(other, int) and other == 1 else other - self.value


def differing(name: str, objects: Sequence[Any]) -> Settings:
    """The attributes in which objects of one class differ, of all of them, as arrays ``(P,)`` in a tree for `put`.

    Private attributes and functions are none of their settings.

    Args:
        name: of the objects, for the message.

    Raises:
        NotMappable: they are of different classes, or differ in something else than numbers.
    """
    first, *others = objects
    if any(type(o) is not type(first) for o in others):
        raise NotMappable(f"{name}: {', '.join(sorted({type(o).__name__ for o in objects}))} are different algorithms")
    found: Settings = {}
    for key, value in vars(first).items():
        values = [vars(o)[key] for o in objects]
        if key.startswith("_") or callable(value) or all(v == value for v in values):
            continue
        found[key] = _arrays(f"{name}.{key}", values)
    return found


def put(target: Any, settings: Settings) -> None:
    """Give an object the settings of the member that is mapped."""
    for key, value in settings.items():
        vars(target)[key] = [OwnNumber(**v) for v in value] if isinstance(value, list) else OwnNumber(**value)


def _arrays(name: str, values: Sequence[Any]) -> Any:
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return vars(OwnNumber.of(values))
    if all(isinstance(v, list | tuple) and len(v) == len(values[0]) for v in values):
        return [_arrays(f"{name}.{i}", of_one) for i, of_one in enumerate(zip(*values, strict=True))]
    raise NotMappable(f"{name} is {', '.join(sorted({str(v) for v in values}))}: one step cannot be all of these")
