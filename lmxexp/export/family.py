"""What a family of published checkpoints is: the meeting point of lmxexp's models and Hugging Face directories.

A family is a module ``lmxexp/export/families/<model_type>.py`` with

``config(model) -> dict``
    What stands in ``config.json`` beside what all have (see `lmxexp.export.write`), read off the model's parts.
    Raises `InexpressibleError` with the reason where the model is of another family.
``ties(model) -> list[Tie]``
    Which arrays of ours hold the same numbers as which of theirs; each of both sides exactly once.
``overrides(config: dict) -> list[str]``
    The overrides, `lmxexp.compose`'s, that build a model of this ``config.json``, which may be of any age and leave
    out what is usual in the family; raises `InexpressibleError` where there are none.

All three look at the model's structure or the file alone, never at the name of the preset, so a model that was composed
in another way but is a llama is exported as a llama. Nothing registers: the folder is the list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import mlx.core as mx

from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path

T = TypeVar("T")


class InexpressibleError(ValueError):
    """A model that a family's configuration cannot say, or a configuration that our parts cannot; with the reason."""


class Family(Protocol):
    """A module of ``lmxexp/export/families``.

    It may also have
    ``MODEL_TYPE``, where ``config.json`` calls the family otherwise than its module is called;
    ``PREFIX``, which some checkpoints put before every name of theirs, such as ``transformer.``;
    ``ALIASES``, pairs of a regular expression and what it is replaced by in names that some checkpoints have;
    ``BUFFERS``, a regular expression of names in checkpoints that are no weights;
    ``IN_TRANSFORMERS`` False, where transformers has no such model.
    """

    ARCHITECTURE: str
    """The class in transformers."""

    def config(self, model: LanguageModel) -> dict[str, Any]: ...
    def ties(self, model: LanguageModel) -> list[Tie]: ...
    def overrides(self, config: dict[str, Any]) -> list[str]: ...


@dataclass(frozen=True)
class Tie:
    """Arrays of ours and of theirs that hold the same numbers, in another order at most.

    The two functions may transpose, permute, join and split, and nothing else, so that gradients translate alike.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_theirs: Callable[..., tuple[mx.array, ...]]
    """Our arrays, in order, to theirs."""
    to_ours: Callable[..., tuple[mx.array, ...]]
    """And back."""


def same(ours: str, theirs: str) -> Tie:
    """One array that is the same on both sides."""
    return Tie((ours,), (theirs,), lambda a: (a,), lambda a: (a,))


def transposed(ours: str, theirs: str) -> Tie:
    """One matrix that is stored transposed."""
    return Tie((ours,), (theirs,), lambda a: (a.T,), lambda a: (a.T,))


def joined(ours: Iterable[str], theirs: str, sizes: Iterable[int], axis: int = 0) -> Tie:
    """Several arrays of ours that are one of theirs, one behind the other along ``axis``.

    Args:
        sizes: lengths of ours along ``axis``.
    """
    names, lengths = tuple(ours), list(sizes)
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths) - 1)]
    return Tie(
        names,
        (theirs,),
        lambda *a: (mx.concatenate(list(a), axis=axis),),
        lambda a: tuple(mx.split(a, ends, axis=axis)),
    )


def renamed(model: LanguageModel, rename: Callable[[str], str | None]) -> list[Tie]:
    """A `same` for each parameter, named theirs by ``rename``; one that gives None is tied elsewhere."""
    pairs = [(ours, rename(ours)) for ours in by_path(model.parameters())]
    return [same(ours, theirs) for ours, theirs in pairs if theirs is not None]


def usual_name(family: Any, theirs: str) -> str:
    """A name in a checkpoint as the family's ties have it."""
    theirs = theirs.removeprefix(getattr(family, "PREFIX", ""))
    for pattern, replacement in getattr(family, "ALIASES", ()):
        theirs = re.sub(pattern, replacement, theirs)
    return theirs


def standard_name(ours: str) -> str:
    """The name that most decoder checkpoints give a parameter: ours behind ``model.``, the head beside it."""
    if ours == "embedding.lm_head.weight":
        return "lm_head.weight"
    return "model." + ours.removeprefix("embedding.")


class Checks:
    """How many conditions have held: of several families that refuse a model, the nearest is the one that came
    furthest."""

    passed = 0


def require(condition: object, reason: str) -> None:
    """Raise `InexpressibleError` unless the condition holds."""
    if not condition:
        raise InexpressibleError(reason)
    Checks.passed += 1


def is_exactly(part: object, kind: type[T], what: str) -> T:
    """The part, if it is of that class and no subclass; raises `InexpressibleError` otherwise."""
    require(type(part) is kind, f"{what} is {_name(part)}, not {kind.__name__}")
    return part  # pyright: ignore[reportReturnType]


def all_equal(values: Iterable[T], what: str) -> T:
    """The one value that all layers have; raises `InexpressibleError` if they differ."""
    found = list(values)
    require(all(v == found[0] for v in found), f"{what} differs between layers: {sorted(set(map(str, found)))}")
    return found[0]


def _name(part: object) -> str:
    return "absent" if part is None else type(part).__name__
