"""Averages of the weights over the course of training, evaluated beside the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from lmxexp.interfaces import ConfigError
from lmxexp.ops.trees import by_path, number
from lmxexp.optim.checks import check_fraction

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer

Arrays = dict[str, mx.array]


class WeightAverage:
    """Takes the weights in every ``every`` steps, and evaluates their average every ``evaluate_every`` steps and at the
    end: ``eval/<name>/loss``, ``eval/<name>/ppl``, ….

    The average is fp32 and part of the checkpoints. Training does not see it.

    Args:
        every: steps between two weights that are taken in.
        evaluate_every: steps between two evaluations, a multiple of ``every``; 0: at the end only.
        name: in the metrics.

    Raises:
        ConfigError: a number below 1, or an evaluation where nothing is taken in.
    """

    at_end = True
    after_log = False

    def __init__(self, every: int, evaluate_every: int, name: str):
        if every < 1:
            raise ConfigError(f"callback.{name}.every={every} must be at least 1")
        if evaluate_every < 0 or evaluate_every % every:
            raise ConfigError(
                f"callback.{name}.evaluate_every={evaluate_every} must be a multiple of "
                f"callback.{name}.every={every}, or 0: at the end only"
            )
        self.every, self.evaluate_every, self.name = every, evaluate_every, name
        self.state: Arrays = {}
        """Of the checkpoint: the average's arrays, and as ``step`` the last step that was taken in."""

    def take_in(self, parameters: Arrays, step: int) -> None:
        """Changes ``state``."""
        raise NotImplementedError

    def average(self) -> Arrays:
        """By path, fp32."""
        raise NotImplementedError

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        step = trainer.step
        # A run that was stopped within this step's callbacks calls them again.
        if step % self.every == 0 and not (self.state and number(self.state["step"]) == step):
            self.take_in(by_path(trainer.model.trainable_parameters()), step)
            self.state["step"] = mx.array(step)
            mx.async_eval(self.state)
        due = step == trainer.settings.steps or (self.evaluate_every and step % self.evaluate_every == 0)
        if not due or not self.state:
            return {}
        own = by_path(trainer.model.trainable_parameters())
        average = {path: a.astype(own[path].dtype) for path, a in self.average().items()}
        with trainer.weights(tree_unflatten(list(average.items()))):
            metrics = trainer.metrics_of_weights()
        return {name.replace("eval/", f"eval/{self.name}/"): value for name, value in metrics.items()}

    def restore(self, arrays: Mapping[str, mx.array]) -> None:
        """Go on from the state in a checkpoint."""
        self.state = dict(arrays)


class ExponentialMovingAverage(WeightAverage):
    """``average += (1 - decay) * (weights - average)``, with less decay at first: ``min(decay, (1 + n) / (10 + n))``
    for the n-th weights, or the first ones would stay in it for long.

    Args:
        every: steps between two weights that are taken in.
        evaluate_every: steps between two evaluations, a multiple of ``every``; 0: at the end only.
        decay: of each weights taken in; the average reaches back about ``every / (1 - decay)`` steps.

    Raises:
        ConfigError: a setting outside its range.

    Source: B. Polyak and A. Juditsky, 1992, Acceleration of Stochastic Approximation by Averaging; the first decays
        are those of TensorFlow's ``ExponentialMovingAverage``.
    """

    def __init__(self, every: int, evaluate_every: int, decay: float):
        super().__init__(every, evaluate_every, "ema")
        self.decay = check_fraction("callback.ema.decay", decay)

    def take_in(self, parameters: Arrays, step: int) -> None:
        if not self.state:
            self.state = {path: p.astype(mx.float32) for path, p in parameters.items()}
            return
        n = step // self.every
        part = mx.array(1 - min(self.decay, (1 + n) / (10 + n)))  # an array: a number would be compiled anew
        self.state = _compiled()(self.average(), parameters, part)

    def average(self) -> Arrays:
        return {path: a for path, a in self.state.items() if path != "step"}


class LatestWeightAverage(WeightAverage):
    """LAWA: the mean of the latest ``size`` weights that were taken in, all of which are kept in memory.

    Args:
        every: steps between two weights that are taken in.
        evaluate_every: steps between two evaluations, a multiple of ``every``; 0: at the end only.
        size: how many; until there are so many, as many as there are.

    Raises:
        ConfigError: a setting outside its range.

    Source: J. Kaddour, 2022, Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight
        Averaging, https://arxiv.org/abs/2209.14981.
    """

    def __init__(self, every: int, evaluate_every: int, size: int):
        super().__init__(every, evaluate_every, "lawa")
        if size < 1:
            raise ConfigError(f"callback.lawa.size={size} must be at least 1")
        self.size = size

    def take_in(self, parameters: Arrays, step: int) -> None:
        place = (step // self.every) % self.size
        self.state |= {f"{place}/{path}": mx.array(p).astype(mx.float32) for path, p in parameters.items()}

    def average(self) -> Arrays:
        kept: dict[str, list[mx.array]] = {}
        for name, a in sorted(self.state.items()):
            if name != "step":
                kept.setdefault(name.partition("/")[2], []).append(a)
        return {path: sum(arrays[1:], arrays[0]) / len(arrays) for path, arrays in kept.items()}


@cache
def _compiled() -> Any:
    def moved(average: Arrays, new: Arrays, part: mx.array) -> Arrays:
        return {path: a + (new[path].astype(mx.float32) - a) * part for path, a in average.items()}

    return mx.compile(moved)
