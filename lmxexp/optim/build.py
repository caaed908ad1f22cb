"""From the configuration's optimizer and schedule to an optimizer that follows the schedule."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.ops.once import once
from lmxexp.optim.checks import check_learning_rate


def build_optimizer(factory: functools.partial, schedule: Schedule) -> Optimizer:
    """Makes the optimizer, with every learning rate on the schedule.

    In the factory, and in the factories among its arguments, each number ``learning_rate`` becomes
    `Scheduled`, ``number * schedule(step)``. Any constructor that takes ``learning_rate`` as a callable will do, those
    of ``mlx.optimizers`` among them.

    Call ``optimizer.init(model.trainable_parameters())`` next, then restore a checkpoint if there is one
    (``optimizer.state = tree_unflatten(…)``), and only then compile: a compiled step keeps the containers that it was
    given, and assigning ``state`` replaces them.

    Args:
        factory: What Hydra makes of a node of ``conf/optim`` (``_partial_: true``).
        schedule: Step to factor, see `lmxexp.interfaces.Schedule`.

    Raises:
        ConfigError: A learning rate is missing, not a number or not above 0, or the optimizer refuses a setting.
    """
    if not isinstance(factory, functools.partial):
        raise ConfigError(f"optim makes a {type(factory).__name__}, not a factory: add _partial_: true to its YAML")
    with _inside("optim"):
        peaks: list[float] = []
        make = _on_schedule(factory, schedule, peaks)
        if not peaks:
            raise ConfigError("learning_rate is missing: give the peak learning rate, a number such as 1e-3")
        return make()


@dataclass(frozen=True)
class Scheduled:
    """A learning rate by its schedule: step to float32 scalar."""

    peak: float
    schedule: Schedule

    def __call__(self, step: mx.array) -> mx.array:
        return once((self.peak * self.schedule(step)).astype(mx.float32))


def learning_rates(optimizer: Optimizer) -> dict[str, mx.array]:
    """The learning rates of the last step, as metrics: float32 scalars, from the optimizer's state.

    ``train/lr`` is the first group's; of an optimizer with several groups, ``train/lr/<group>`` is each one's. A group
    is called by the optimizer's ``group_names`` where it has them, else by the name of its class, numbered where two
    are the same. Before the first step these are the learning rates of that step.
    """
    if not isinstance(optimizer, MultiOptimizer):
        return {"train/lr": optimizer.state["learning_rate"]} if "learning_rate" in optimizer.state else {}
    names = getattr(optimizer, "group_names", None) or _class_names(optimizer.optimizers)
    groups = {
        f"train/lr/{name}": group.state["learning_rate"]
        for name, group in zip(names, optimizer.optimizers, strict=True)
        if "learning_rate" in group.state
    }
    return {"train/lr": next(iter(groups.values())), **groups} if groups else {}


def _on_schedule(factory: functools.partial, schedule: Schedule, peaks: list[float]) -> Callable[..., Any]:
    """The same factory with callable learning rates, here and below; appends their numbers to ``peaks``."""

    def replaced(name: str, value: Any) -> Any:
        if name == "learning_rate":
            peak = check_learning_rate(value)
            peaks.append(peak)
            return Scheduled(peak, schedule)
        if isinstance(value, functools.partial):
            with _inside(name):
                inner = _on_schedule(value, schedule, peaks)
            return _inside(name)(inner)
        if isinstance(value, list):
            return [replaced(f"{name}.{i}", item) for i, item in enumerate(value)]
        return value

    return functools.partial(factory, **{name: replaced(name, value) for name, value in factory.keywords.items()})


@contextmanager
def _inside(key: str) -> Iterator[None]:
    """Puts ``key`` in front of the messages of the errors inside, which name a setting below it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def _class_names(optimizers: list[Optimizer]) -> list[str]:
    names = [type(optimizer).__name__.lower() for optimizer in optimizers]
    count = Counter(names)
    return [f"{name}_{i}" if count[name] > 1 else name for i, name in enumerate(names)]
