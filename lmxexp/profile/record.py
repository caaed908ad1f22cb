"""What a model's modules are given in a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

_NO_MATTER = ("layer_idx", "_training", "_no_grad")
"""Attributes in which modules of one kind may differ."""


@dataclass
class Call:
    """The first call of a module, and how many there were."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    count: int = 1


@dataclass(frozen=True)
class _Place:
    """Stands for an array."""

    name: str


@dataclass
class Inputs:
    """The inputs of a `Call`, with arrays and all else apart."""

    arrays: dict[str, mx.array] = field(default_factory=dict)
    _form: Any = None

    @classmethod
    def of(cls, call: Call) -> Inputs:
        found = cls()

        def place(leaf: Any) -> Any:
            if not isinstance(leaf, mx.array):
                return leaf
            name = f"input{len(found.arrays)}"
            found.arrays[name] = leaf
            return _Place(name)

        found._form = tree_map(place, [list(call.args), call.kwargs])
        return found

    def fill(self, arrays: dict[str, mx.array]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments with these arrays; dictionaries are new ones, in case that the module writes to them."""
        args, kwargs = tree_map(lambda leaf: arrays[leaf.name] if isinstance(leaf, _Place) else leaf, self._form)
        return args, kwargs


@contextmanager
def recording(modules: Collection[nn.Module]) -> Iterator[dict[int, Call]]:
    """Within, calls of these modules are noted, by the module's ``id``.

    Python looks ``__call__`` up on the class, so it is there that the calls are caught. Nothing is set on a module:
    another order of its entries would be another order of its parameters, and of sums over them.
    """
    watched = {id(module) for module in modules}
    found: dict[int, Call] = {}
    before: list[tuple[type, Any]] = []
    for owner in {type(module) for module in modules}:
        before.append((owner, vars(owner).get("__call__")))
        setattr(owner, "__call__", _noting(owner.__call__, watched, found))  # noqa: B010
    try:
        yield found
    finally:
        for owner, own in before:
            if own is None:
                delattr(owner, "__call__")
            else:
                setattr(owner, "__call__", own)  # noqa: B010


def _noting(function: Callable[..., Any], watched: set[int], found: dict[int, Call]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) in watched:
            if (earlier := found.get(id(self))) is not None:
                earlier.count += 1
            else:  # copies of containers: later layers write to what all share
                found[id(self)] = Call(*tree_map(lambda leaf: leaf, (args, kwargs)))
        return function(self, *args, **kwargs)

    return call


def kind_of(module: nn.Module, call: Call) -> tuple[Any, ...]:
    """Equal for two modules that compute the same: classes, settings and shapes of parameters and inputs agree.

    Numbers with a fraction do not count, such as one that a layer has by its depth: they cost the same whatever their
    value. Nor does what layers hand on to each other.
    """
    given = [list(call.args), {key: value for key, value in call.kwargs.items() if key != "shared"}]
    leaves: list[Any] = tree_flatten(given)  # type: ignore[assignment]
    inputs = tuple((path, _describe(leaf, ())) for path, leaf in leaves)
    return (_describe(module, ()), inputs)


def _describe(value: Any, within: tuple[int, ...]) -> Any:
    if isinstance(value, mx.array):
        return (value.shape, str(value.dtype))
    if isinstance(value, float):
        return "a number"
    if value is None or isinstance(value, bool | int | str):
        return value
    if id(value) in within:
        return "itself"
    within = (*within, id(value))
    if isinstance(value, list | tuple):
        return tuple(_describe(v, within) for v in value)
    settings = dict(getattr(value, "__dict__", {}))
    entries = settings | dict(value) if isinstance(value, dict) else settings
    described = tuple((str(k), _describe(v, within)) for k, v in entries.items() if k not in _NO_MATTER)
    return (type(value).__module__, type(value).__qualname__, described)
