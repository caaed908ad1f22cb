"""What our optimizers share: fp32 arithmetic and state, and decoupled weight decay on matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, cast, runtime_checkable

import mlx.core as mx
from mlx.optimizers import Optimizer
from mlx.utils import tree_map, tree_map_with_path

from lmxexp.interfaces import Schedule
from lmxexp.ops.once import once
from lmxexp.optim.checks import check_learning_rate, check_weight_decay
from lmxexp.optim.roles import is_matrix


@runtime_checkable
class RateRule(Protocol):
    """An initialisation that has learning rates go with it."""

    def rate_factor(self, path: str, parameter: mx.array, *, spectral: bool) -> float:
        """What the learning rate of a parameter is multiplied by; ``spectral``: as `FullPrecision.moves` says."""
        ...


class RateFactors:
    """The factors on the learning rates of single parameters by a rule; equal where the rules are."""

    def __init__(self, rule: RateRule):
        self.of = rule.rate_factor
        self._settings = (type(rule), vars(rule))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateFactors) and self._settings == other._settings

    __hash__ = None  # type: ignore[assignment]


class FullPrecision(Optimizer):
    """An optimizer that computes in fp32 whatever the parameters are, and decays matrices only.

    A subclass says which state a parameter has (`moments`) and how far to move it (`change`). This class casts the
    gradient and the parameter to fp32 and the new parameter back, and subtracts ``learning_rate * weight_decay * p``
    from matrices (see `lmxexp.optim.roles`), embeddings included: norms, biases, decays are never decayed.

    MLX's own optimizers keep their state in the parameter's type. In bf16 (8 bits of precision) ``0.999 * v`` rounds
    back to ``v``, so a second moment never shrinks; and they decay every parameter. With bf16 *parameters* a change
    below about 0.4 % of the parameter is still lost when the result is rounded: `train.precision=mixed` keeps fp32
    parameters for that reason.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        weight_decay: Decoupled decay, a fraction of the parameter per unit of learning rate and step.

    Shapes: the state of a parameter is made of fp32 arrays, all there after ``init(parameters)``.

    Raises:
        ConfigError: A setting is outside its range.

    Source: Decoupled decay: I. Loshchilov and F. Hutter, 2019, Decoupled Weight Decay Regularization,
        https://arxiv.org/abs/1711.05101, algorithm 2, with the decay multiplied by the learning rate as in PyTorch.
    """

    elementwise = False
    """Whether each element of a parameter is updated by itself, so that a part of a parameter can be without the rest.
    A class says so for itself: what is derived from it may differ."""
    moves: Literal["entrywise", "spectral"] | None = None
    """What the learning rate is a size of, in a change: of each element, or of a matrix's spectral norm. None: of
    neither, and no rule says how it goes with the width of a model."""

    def __init__(self, learning_rate: float | Schedule, weight_decay: float = 0.0):
        super().__init__()
        self.rate_factors: RateFactors | None = None
        if not callable(learning_rate):
            check_learning_rate(learning_rate)
        self._maybe_schedule("learning_rate", learning_rate)
        self.weight_decay = check_weight_decay(weight_decay)
        self._of_this_step: dict[str, mx.array] = {}
        self.l2_penalty = 0.0  # a decay that is added to the gradient, for the optimizers that are defined so

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        """The state of one parameter before the first step, fp32. ``parameter`` tells the shape."""
        raise NotImplementedError

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        """What to subtract from the parameter, decay apart; updates ``state``. All fp32.

        ``self.step`` counts from 1 here. Write ``array * scalar``, not the other way round: for a population
        ``mx.vmap`` moves the members' axis of what stands on the right to where it is on the left, and an array so
        moved falls out of the fused kernel.
        """
        raise NotImplementedError

    def once_a_step(self, name: str, compute: Callable[[], mx.array]) -> mx.array:
        """For `change`: a scalar that is the same for all parameters, such as a bias correction. It is computed for the
        first of them, by an operation of its own."""
        if name not in self._of_this_step:
            self._of_this_step[name] = once(compute())
        return self._of_this_step[name]

    def init_single(self, parameter: mx.array, state: dict[str, mx.array]) -> None:
        state.update(self.moments(parameter))

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        if not self._initialized:
            self.init(tree_map(lambda _, p: p, gradients, parameters))  # some keep where they started
        super().apply_gradients({}, {})  # the step and the schedules; it does not know the parameters' names
        try:
            return cast(dict, tree_map_with_path(self._apply, gradients, parameters, self.state))
        finally:
            self._of_this_step.clear()

    def _apply(self, path: str, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        weight = parameter.astype(mx.float32)
        gradient = gradient.astype(mx.float32)
        decays = is_matrix(path, parameter)
        if self.l2_penalty and decays:
            gradient = gradient + weight * self.l2_penalty
        change = self.change(gradient, weight, state)
        if self.rate_factors is not None:
            change = change * self.rate_factors.of(path, parameter, spectral=self.moves == "spectral")
        if self.weight_decay:
            change = change + weight * self._decay(decays)
        return (weight - change).astype(parameter.dtype)

    def _decay(self, decays: bool) -> mx.array:
        # What does not decay does so by nothing, and has the same kernel: another would be compiled for seconds.
        if decays:
            return self.once_a_step("decay", lambda: self.learning_rate * self.weight_decay)
        return self.once_a_step("no decay", lambda: mx.array(0.0))


def zeros(parameter: mx.array) -> mx.array:
    """Zeros of the parameter's shape, fp32."""
    return mx.zeros(parameter.shape, mx.float32)
