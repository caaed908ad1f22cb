"""From the configuration's optimizer and schedule to an optimizer that follows the schedule."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer
from omegaconf import DictConfig

from lmxexp.build import build
from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.ops.once import once
from lmxexp.ops.trees import by_path
from lmxexp.optim.checks import check_learning_rate
from lmxexp.optim.full_precision import FullPrecision, RateFactors, RateRule
from lmxexp.optim.groups import DEFAULT, GroupedOptimizer, ParameterGroup


def optimizer_of(cfg: DictConfig) -> Optimizer:
    """The optimizer that a configuration describes, with its schedule and parameter groups; see `build_optimizer`."""
    groups = build(cfg.param_groups) if cfg.get("param_groups") else {}
    optimizer = build_optimizer(build(cfg.optim), build(cfg.schedule), groups)
    if isinstance(rule := build(cfg.model.init), RateRule):
        for leaf in leaf_optimizers(optimizer):
            if not isinstance(leaf, FullPrecision) or leaf.moves is None:
                raise ConfigError(
                    f"model/init={cfg.choice.get('init')}: it has no learning rates for {type(leaf).__name__}, whose "
                    "changes are of no given size; choose adamw, lion or muon"
                )
            leaf.rate_factors = RateFactors(rule)
    return optimizer


def leaf_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer itself, or those that it hands its groups to."""
    if isinstance(optimizer, MultiOptimizer):
        return [leaf for part in optimizer.optimizers for leaf in leaf_optimizers(part)]
    return [optimizer]


def build_optimizer(
    factory: functools.partial, schedule: Schedule, groups: Mapping[str, ParameterGroup] | None = None
) -> Optimizer:
    """Makes the optimizer, with every learning rate on the schedule.

    In the factory, and in the factories among its arguments, each number ``learning_rate`` becomes
    `Scheduled`, ``number * schedule(step)``. Any constructor that takes ``learning_rate`` as a callable will do, those
    of ``mlx.optimizers`` among them.

    Call ``optimizer.init(model.trainable_parameters())`` next, then restore a checkpoint if there is one
    (``optimizer.state = tree_unflatten(…)``), and only then compile: a compiled step keeps the containers that it was
    given, and assigning ``state`` replaces them.

    Args:
        factory: What Hydra makes of a node of ``conf/optim`` (``_partial_: true``).
        groups: Parameters that have settings or an optimizer of their own, by name; the first takes its choice.
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
        rest = make()
    if not groups:
        return rest
    optimizers = {}
    for name, group in groups.items():
        with _inside(f"param_groups.{name}"):
            make = _on_schedule(group.factory(factory), schedule, [])
            optimizers[name] = group, make()
    return GroupedOptimizer(optimizers, rest)


@dataclass(frozen=True)
class Scheduled:
    """A learning rate by its schedule: step to float32 scalar."""

    peak: float
    schedule: Schedule

    def __call__(self, step: mx.array) -> mx.array:
        return once((self.peak * self.schedule(step)).astype(mx.float32))


def learning_rates(optimizer: Optimizer) -> dict[str, mx.array]:
    """The learning rates of the last step, as metrics: float32 scalars, from the optimizer's state.

    ``train/lr`` is the first group's, or that of the parameters in none of the configured groups; of an optimizer with
    several groups, ``train/lr/<group>`` is each one's. A group is called by the optimizer's ``group_names`` where it
    has them, else by the name of its class, numbered where two are the same. Before the first step these are the
    learning rates of that step.
    """
    if not isinstance(optimizer, MultiOptimizer):
        return {"train/lr": optimizer.state["learning_rate"]} if "learning_rate" in optimizer.state else {}
    groups = dict(_rates(optimizer))
    first = next((name for name in groups if name == DEFAULT or name.startswith(f"{DEFAULT}/")), next(iter(groups), ""))
    return {"train/lr": groups[first], **{f"train/lr/{name}": rate for name, rate in groups.items()}} if groups else {}


@dataclass(frozen=True)
class Group:
    """The parameters that one optimizer updates."""

    name: str
    """As in ``train/lr/<group>``; empty where there is one alone."""
    optimizer: Optimizer
    parameters: dict[str, mx.array]
    """By path."""

    @property
    def state_bytes(self) -> int:
        return sum(a.nbytes for path, a in by_path(self.optimizer.state).items() if a.ndim)


def groups_of(optimizer: Optimizer, parameters: dict, name: str = "") -> list[Group]:
    """An optimizer's groups that have parameters; two may have one name, as Muon's of matrices and of stacks.

    Args:
        optimizer: initialised for ``parameters``.
        parameters: a tree.
    """
    if not isinstance(optimizer, MultiOptimizer):
        return [Group(name, optimizer, by_path(parameters))]
    parts = zip(_group_names(optimizer), optimizer.optimizers, optimizer._split_dictionary(parameters), strict=True)
    found = [group for own, part, tree in parts for group in groups_of(part, tree, f"{name}/{own}" if name else own)]
    return [group for group in found if group.parameters]


def _rates(optimizer: MultiOptimizer) -> Iterator[tuple[str, mx.array]]:
    for name, group in zip(_group_names(optimizer), optimizer.optimizers, strict=True):
        if isinstance(group, MultiOptimizer):
            yield from ((f"{name}/{inner}", rate) for inner, rate in _rates(group))
        elif "learning_rate" in group.state:
            yield name, group.state["learning_rate"]


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

    # Its own first: a bad number is told of where it was written, not where it is handed on to.
    own_first = sorted(factory.keywords.items(), key=lambda item: isinstance(item[1], functools.partial))
    return functools.partial(factory, **{name: replaced(name, value) for name, value in own_first})


@contextmanager
def _inside(key: str) -> Iterator[None]:
    """Puts ``key`` in front of the messages of the errors inside, which name a setting below it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from None


def _group_names(optimizer: MultiOptimizer) -> Sequence[str]:
    if own := getattr(optimizer, "group_names", None):
        return own
    names = [type(group).__name__.lower() for group in optimizer.optimizers]
    count = Counter(names)
    return [f"{name}_{i}" if count[name] > 1 else name for i, name in enumerate(names)]
