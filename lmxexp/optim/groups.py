"""Parameter groups: some of the parameters with settings, or an optimizer, of their own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer

from lmxexp.interfaces import ConfigError, OptimizerFactory
from lmxexp.ops.trees import by_path, in_order_of
from lmxexp.optim.roles import role_of

Role = Literal["embedding", "head", "matrix", "vector"]
DEFAULT = "default"
"""The group of all that no other takes."""


@dataclass(frozen=True)
class ParameterGroup:
    """Which parameters, and what is different for them.

    Args:
        role: those of this role alone, see `lmxexp.optim.roles.role_of`; None: of any.
        path: those whose name fits this pattern alone, such as ``layers.0.*`` or ``*norm*``; None: any.
        learning_rate: the peak; None: the optimizer's.
        weight_decay: None: the optimizer's.
        settings: any others of the optimizer, by name.
        optim: another optimizer for them; None: one of the same kind as for the rest.
    """

    role: Role | None = None
    path: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    settings: dict[str, Any] | None = None
    optim: OptimizerFactory | None = None

    def takes(self, path: str, parameter: mx.array) -> bool:
        """Whether a parameter belongs to it."""
        if self.role is not None and role_of(path, parameter) != self.role:
            return False
        return self.path is None or fnmatchcase(path, self.path)

    def factory(self, default: functools.partial) -> functools.partial:
        """That of its optimizer, given the one of the rest.

        Raises:
            ConfigError: it has no such setting.
        """
        factory = cast(functools.partial, self.optim or default)
        own = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        return _with(
            {k: v for k, v in own.items() if v is not None}, "", _with(self.settings or {}, "settings.", factory)
        )


class GroupedOptimizer(MultiOptimizer):
    """An optimizer for each group, the first that takes a parameter, and one for the rest.

    Args:
        groups: which parameters, and their optimizer, by name.
        rest: of all others.
    """

    def __init__(self, groups: Mapping[str, tuple[ParameterGroup, Optimizer]], rest: Optimizer):
        super().__init__(
            [*(optimizer for _, optimizer in groups.values()), rest], [group.takes for group, _ in groups.values()]
        )
        self.group_names = (*groups, DEFAULT)
        self._groups = {name: group for name, (group, _) in groups.items()}

    def init(self, parameters: dict) -> None:
        """
        Raises:
            ConfigError: a group takes no parameter.
        """
        for name, part in zip(self._groups, self._split_dictionary(parameters), strict=False):
            if not by_path(part):
                group = self._groups[name]
                asked = {"role": group.role, "path": group.path}
                shown = ", ".join(f"param_groups.{name}.{k}={v}" for k, v in asked.items() if v is not None)
                names = ", ".join(list(by_path(parameters))[:4])
                raise ConfigError(
                    f"{shown or f'param_groups.{name}'} takes no parameter, or those before it took them all; they are "
                    f"called {names}, … (python -m lmxexp.describe shows the groups)"
                )
        super().init(parameters)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        return in_order_of(gradients, super().apply_gradients(gradients, parameters))


def _with(settings: Mapping[str, Any], key: str, factory: functools.partial) -> functools.partial:
    """The factory with other settings; a mapping goes into the factory that stands there."""
    made = factory.func
    while isinstance(made, functools.partial):
        made = made.func
    known = inspect.signature(cast(Callable[..., Any], made)).parameters
    new: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"{key}{name}={value} is no setting of {made.__name__}: it takes {', '.join(known)}")
        there = factory.keywords.get(name)
        if isinstance(value, Mapping) and isinstance(there, functools.partial):
            value = _with(value, f"{key}{name}.", there)
        new[name] = value
    # Hydra's partials are of a class that `functools.partial` does not flatten: what they hold would not be among the
    # keywords, where the schedule looks for learning rates.
    return functools.partial(factory, **{**factory.keywords, **new})
