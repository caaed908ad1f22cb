"""Whether a value out of YAML fits the annotation of a constructor's argument."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

_CONTAINERS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)


class Built:
    """Stands for what a node with a ``_target_`` will be; its type is not known before it is built."""


def locate(name: str) -> Callable[..., Any]:
    """Import what a ``_target_`` names.

    Raises:
        ImportError: with the reason in words.
    """
    parts = str(name).split(".")
    for n in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:n])
        try:
            value: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and (module == error.name or module.startswith(error.name + ".")):
                if n == 1:
                    raise ImportError(f"there is no module {module}") from None
                continue
            raise
        for part in parts[n:]:
            if not hasattr(value, part):
                raise ImportError(f"there is no {part} in {module}")
            value = getattr(value, part)
        if not callable(value):
            raise ImportError("that is nothing to call")
        return value
    raise ImportError("it takes a dotted name: package.module.Class")


def reason(error: Exception) -> str:
    """Why `locate` did not import something: its own words, or what the user's module raised."""
    return str(error) if type(error) is ImportError else f"{type(error).__name__}: {error}"


def parameters(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named parameters with their annotations evaluated, and whether any other name is taken too.

    Raises:
        TypeError, ValueError: the callable tells no signature (some built-ins).
    """
    signature = inspect.signature(target)
    function = target.__init__ if inspect.isclass(target) else target
    scope = getattr(inspect.unwrap(function), "__globals__", {})
    named = {
        name: parameter.replace(annotation=_evaluate(parameter.annotation, scope))
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return named, any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _evaluate(annotation: Any, scope: dict[str, Any]) -> Any:
    """An annotation that is a string, evaluated; one that cannot be (imported for type checkers only) allows all."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, scope)
    except Exception:
        return Any


def fits(value: Any, annotation: Any) -> bool:
    """Whether the value fits; yes where the annotation is not understood."""
    if annotation in (inspect.Parameter.empty, Any, object):
        return True
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return fits(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is typing.Literal:
        return any(value == a and type(value) is type(a) for a in args)
    if annotation in (None, type(None)):
        return value is None
    kind = origin or annotation
    if isinstance(value, Built):
        return kind not in (int, float, str, bool, *_CONTAINERS)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (str, bool):
        return isinstance(value, kind)
    if kind in _CONTAINERS:
        return isinstance(value, list) and _elements_fit(value, kind, args)
    if kind in (dict, Mapping):
        return isinstance(value, dict) and (len(args) < 2 or all(fits(v, args[1]) for v in value.values()))
    if kind is collections.abc.Callable:
        return False
    # A class of its own: YAML holds text for a path or an enum, never nothing.
    return value is not None or not inspect.isclass(kind)


def _elements_fit(value: list[Any], kind: Any, args: tuple[Any, ...]) -> bool:
    if not args:
        return True
    if kind is tuple and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(fits, value, args))
    return all(fits(v, args[0]) for v in value)


def takes_text(annotation: Any) -> bool:
    """Whether some texts fit: a Literal of texts, or str."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(map(takes_text, args))
    return annotation is str or (origin is typing.Literal and any(isinstance(a, str) for a in args))


def say(annotation: Any) -> str:
    """An annotation in words: ``int or null``, ``one of a, b``, ``list of float``."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(say, args))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if annotation in (None, type(None)):
        return "null"
    kind = origin or annotation
    if kind is tuple and args and args[-1] is not Ellipsis:
        return f"a list of {len(args)} ({', '.join(map(say, args))})"
    if kind in _CONTAINERS:
        return f"a list of {say(args[0])}" if args else "a list"
    if kind is collections.abc.Callable:
        return "a component (a node with _target_)"
    return "text" if kind is str else getattr(kind, "__name__", str(kind))
