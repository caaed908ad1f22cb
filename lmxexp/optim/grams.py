"""Grams: any optimizer's step lengths, in the direction of the current gradient."""

from __future__ import annotations

import mlx.core as mx
from mlx.optimizers import Optimizer

from lmxexp.interfaces import OptimizerFactory, Schedule
from lmxexp.optim.cautious import Rechanged, made, put_in_front


def grams(inner: OptimizerFactory, learning_rate: float | Schedule | None = None) -> Optimizer:
    """The inner optimizer as `Grams` has it, each of its groups where it has several.

    Args:
        inner: Factory of the optimizer, with its settings.
        learning_rate: Its learning rate, a number or a callable from the step to a float32 scalar; None: the factory's.

    Raises:
        ConfigError: The inner optimizer is not one of lmxexp's kind, or has another learning rate.

    Source: See `Grams`.
    """
    return put_in_front(Grams, made(inner, learning_rate))


class Grams(Rechanged):
    """A change of which only the size counts: each number of it has the gradient's sign.

    The inner optimizer's state and weight decay are as without it.

    Source: Y. Cao, X. Li and Z. Song, 2024, Grams: Gradient Descent with Adaptive Momentum Scaling,
        https://arxiv.org/abs/2412.17107, algorithm 1, which has Adam inside.
    """

    def rechanged(self, change: mx.array, gradient: mx.array) -> mx.array:
        return mx.abs(change) * mx.sign(gradient)
