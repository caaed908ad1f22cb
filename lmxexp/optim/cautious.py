"""Cautious: any optimizer, kept from moving against the current gradient."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer

from lmxexp.interfaces import ConfigError, OptimizerFactory, Schedule
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import leaf_optimizers
from lmxexp.optim.full_precision import FullPrecision


def cautious(inner: OptimizerFactory, learning_rate: float | Schedule | None = None) -> Optimizer:
    """The inner optimizer as `Cautious` has it, each of its groups where it has several.

    Args:
        inner: Factory of the optimizer, with its settings.
        learning_rate: Its learning rate, a number or a callable from the step to a float32 scalar; None: the factory's.

    Raises:
        ConfigError: The inner optimizer is not one of lmxexp's kind, or has another learning rate.

    Source: See `Cautious`.
    """
    return put_in_front(Cautious, made(inner, learning_rate))


class Rechanged(FullPrecision):
    """A class to put in front of an optimizer's: it makes something else of the optimizer's changes (`rechanged`).

    The gradient is what ``apply_gradients`` was given, clipped and before the optimizer did anything to it: Muon hands
    on to ``change`` what is orthogonal already, and SGD adds its L2 penalty.
    """

    _gradients: Mapping[str, mx.array] = MappingProxyType({})
    _path = ""

    def rechanged(self, change: mx.array, gradient: mx.array) -> mx.array:
        """What to subtract in the place of ``change``, decay apart. All fp32."""
        raise NotImplementedError

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        self._gradients = by_path(gradients)
        try:
            return super().apply_gradients(gradients, parameters)
        finally:
            del self._gradients

    def _apply(self, path: str, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        self._path = path  # `change` does not learn it
        return super()._apply(path, gradient, parameter, state)

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        change = super().change(gradient, parameter, state)
        return self.rechanged(change, self._gradients[self._path].astype(mx.float32))


class Cautious(Rechanged):
    """A change that lacks every number whose sign is not the gradient's; the others are scaled up to make up for it.

    The rest is scaled by ``n / (kept + 1)``, of ``n`` numbers in the parameter. Where the gradient is zero nothing
    moves: of an embedding whose tokens are rarely in a batch, few numbers are kept, and move the farther. The inner
    optimizer's state and weight decay are as without it.

    Source: K. Liang et al., 2024, Cautious Optimizers: Improving Training with One Line of Code,
        https://arxiv.org/abs/2411.16085, algorithm 2 and the scale as in section 3, with xi = 1; algorithm 1 there,
        which is a sketch, divides by the mean of the mask instead.
    """

    def rechanged(self, change: mx.array, gradient: mx.array) -> mx.array:
        # Not the sign of their product, which may be too small for fp32.
        agrees = mx.sign(change) * mx.sign(gradient) > 0
        return mx.where(agrees, change, 0.0) * (change.size / (mx.sum(agrees) + 1))


def made(inner: OptimizerFactory, learning_rate: float | Schedule | None) -> Optimizer:
    """The inner optimizer, at the learning rate that is set beside it.

    Raises:
        ConfigError: Its factory has another one.
    """
    if learning_rate is None or not callable(learning_rate):
        return inner() if learning_rate is None else inner(learning_rate=learning_rate)
    optimizer = inner()
    own = leaf_optimizers(optimizer)[0]._schedulers.get("learning_rate")
    if own != learning_rate:
        raise ConfigError(
            f"inner.learning_rate={getattr(own, 'peak', own)} is not "
            f"learning_rate={getattr(learning_rate, 'peak', learning_rate)}, which it follows: set that one alone"
        )
    return optimizer


def put_in_front(kind: type[Rechanged], optimizer: Optimizer) -> Optimizer:
    """The same optimizer, its changes by `Rechanged` of that kind; of several groups, each.

    Its class becomes one of both: a population tells by classes whether its members are one algorithm.

    Args:
        kind: `Cautious` or another.
        optimizer: Changed in place.

    Raises:
        ConfigError: It is not one of lmxexp's kind.
    """
    if isinstance(optimizer, MultiOptimizer):
        for group in optimizer.optimizers:
            put_in_front(kind, group)
    elif isinstance(optimizer, Rechanged):
        raise ConfigError(
            "inner is cautious or grams itself, and either settles the signs alone: choose another, such as "
            "optim@optim.inner=adamw"
        )
    elif isinstance(optimizer, FullPrecision):
        optimizer.__class__ = _of_both(kind, type(optimizer))
    else:
        name = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
        raise ConfigError(
            f"inner={name} cannot be wrapped: choose a kind of conf/optim, such as optim@optim.inner=lion"
        )
    return optimizer


@functools.cache
def _of_both(kind: type[Rechanged], inner: type[Any]) -> type[Any]:
    return type(kind.__name__ + inner.__name__, (kind, inner), {"__module__": inner.__module__})
