"""Muon: a momentum made orthogonal, for hidden matrices; AdamW for everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import mlx.core as mx
from mlx.optimizers import MultiOptimizer, Optimizer
from mlx.utils import tree_map

from lmxexp.interfaces import ConfigError, OptimizerFactory, Schedule
from lmxexp.ops.trees import in_order_of
from lmxexp.optim.checks import check_fraction
from lmxexp.optim.full_precision import FullPrecision, zeros
from lmxexp.optim.roles import is_hidden_matrix, is_stack

Precision = Literal["auto", "bf16", "fp32"]
Scale = Literal["spectral", "match_rms_adamw"]

LARGEST_STACK = 2**25
"""Numbers in one stack of matrices (128 MiB in fp32). What is larger keeps a GPU busy for longer than the launches that
a larger stack would save, and would only take memory."""


def orthogonalize(matrix: mx.array, steps: int, dtype: mx.Dtype) -> mx.array:
    """A matrix with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Five products with the matrix itself do roughly what a singular value decomposition would. The polynomial is the
    published one: steep at 0, so that small singular values rise fast, and not settled at 1.

    Args:
        matrix: Or a stack of matrices.
        steps: Iterations of Newton and Schulz.
        dtype: Of the products. The norm before them is fp32 always.

    Shapes: ``(..., rows, columns)`` to the same, fp32.

    Source: K. Jordan et al., 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = mx.swapaxes(matrix, -1, -2) if tall else matrix  # the smaller of the two Gram matrices
    norm = mx.sqrt(mx.square(x).sum(axis=(-2, -1), keepdims=True))
    x = (x / (norm + 1e-7)).astype(dtype)
    for _ in range(steps):
        gram = x @ mx.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    x = x.astype(mx.float32)
    return mx.swapaxes(x, -1, -2) if tall else x


def of_each(function: Callable[[mx.array], mx.array], matrices: Sequence[mx.array]) -> list[mx.array]:
    """``function`` of several matrices, those of equal shapes as one stack.

    The products of small matrices take a GPU less time than their launches, and a model has dozens of matrices of one
    shape.

    Args:
        function: Of a matrix, or of a stack of matrices each alone: ``(..., rows, columns)``.
        matrices: Matrices, or stacks of them.
    """
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        of_shape.setdefault(matrix.shape, []).append(place)
    found: dict[int, mx.array] = {}
    for places in of_shape.values():
        at_once = max(1, LARGEST_STACK // matrices[places[0]].size)
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            if len(some) == 1:
                found[some[0]] = function(matrices[some[0]])
            else:
                stack = function(mx.stack([matrices[place] for place in some]))
                found.update((place, stack[i]) for i, place in enumerate(some))
    return [found[place] for place in range(len(matrices))]


class OfMatrices(FullPrecision):
    """An optimizer of hidden matrices that computes what is costly for all those of one shape together.

    A subclass says in `before` what that is computed of, and in `together` what is; its `change` takes the result from
    the state: ``state.pop("direction")``.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        momentum: How much of the momentum stays at each step, in [0, 1).
        weight_decay: Decoupled decay.
        stacked: What a weight of more than two axes is. False: a convolution, ``(out, everything else)`` as one
            matrix. True: a stack of matrices (experts), each treated alone.

    Raises:
        ConfigError: A setting is outside its range.
    """

    def __init__(self, learning_rate: float | Schedule, momentum: float, weight_decay: float, stacked: bool):
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_fraction("momentum", momentum)
        self.stacked = stacked

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)}

    def before(self, gradient: mx.array, state: dict[str, mx.array]) -> mx.array:
        """A matrix, or a stack of them; updates ``state``. All fp32."""
        raise NotImplementedError

    def together(self, matrices: mx.array) -> mx.array:
        """Of what `before` returned, one or several along a new first axis."""
        raise NotImplementedError

    def as_matrices(self, weight: mx.array) -> mx.array:
        """``(rows, columns)``, or ``(..., rows, columns)`` of a stack."""
        assert weight.ndim >= 2, "only matrices have a direction"
        return weight if self.stacked else weight.reshape(weight.shape[0], -1)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        if not self._initialized:
            self.init(gradients)
        pairs: list[tuple[mx.array, dict[str, mx.array]]] = []
        tree_map(lambda gradient, state: pairs.append((gradient, state)), gradients, self.state)
        matrices = [self.before(gradient.astype(mx.float32), state) for gradient, state in pairs]
        for (_, state), direction in zip(pairs, of_each(self.together, matrices), strict=True):
            state["direction"] = direction
        return super().apply_gradients(gradients, parameters)


class Orthogonalized(OfMatrices):
    """An optimizer whose momentum, a running mean, is made orthogonal before it is applied.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        momentum: How much of the running mean of gradients stays at each step, in [0, 1).
        nesterov: Look ahead by one step of momentum.
        ns_steps: Newton-Schulz iterations; 5 as published.
        ns_precision: Type of their products: ``bf16`` as published, ``fp32``, or ``auto``: bf16 on a GPU, fp32 on a
            CPU, where MLX's bf16 products are 20 times slower.
        weight_decay, stacked: See `OfMatrices`.

    Raises:
        ConfigError: A setting is outside its range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        ns_precision: Precision,
        weight_decay: float,
        stacked: bool,
    ):
        super().__init__(learning_rate, momentum, weight_decay, stacked)
        self.nesterov = nesterov
        if ns_steps < 1:
            raise ConfigError(f"ns_steps={ns_steps} must be at least 1: 5 is the published number")
        self.ns_steps = ns_steps
        if ns_precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"ns_precision={ns_precision} is unknown: choose auto, bf16 or fp32")
        if ns_precision == "auto":
            ns_precision = "bf16" if mx.default_device().type == mx.DeviceType.gpu else "fp32"
        self.ns_dtype = mx.bfloat16 if ns_precision == "bf16" else mx.float32

    def before(self, gradient: mx.array, state: dict[str, mx.array]) -> mx.array:
        new = gradient * (1 - self.momentum)
        state["m"] = state["m"] * self.momentum + new
        return self.as_matrices(state["m"] * self.momentum + new if self.nesterov else state["m"])

    def together(self, matrices: mx.array) -> mx.array:
        return orthogonalize(matrices, self.ns_steps, self.ns_dtype)


class Muon(Orthogonalized):
    """Nesterov momentum whose matrix is made orthogonal before it is applied; for hidden matrices only.

    Every direction of the update gets the same weight, not only the few strong ones. MLX's Muon adds the weight decay
    to the gradient, where the orthogonalisation destroys it; here it is decoupled, as published.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; with ``scale=spectral`` roughly the
            spectral norm of one change.
        momentum, nesterov, ns_steps, ns_precision, weight_decay, stacked: See `Orthogonalized`.
        scale: What the orthogonal matrix is multiplied by. ``spectral``: ``max(1, rows / columns)**0.5``, Jordan's.
            ``match_rms_adamw``: ``0.2 * max(rows, columns)**0.5``, Moonlight's, which takes AdamW's learning rate and
            weight decay as they are.

    Raises:
        ConfigError: A setting is outside its range.

    Source: K. Jordan et al., 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/; J. Liu et al., 2025, Muon is Scalable for LLM Training,
        https://arxiv.org/abs/2502.16982, equation 4 (``match_rms_adamw``). For a convolution ``rows / columns`` is
        that of the flattened matrix; Jordan's code takes the last two axes of the filter.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "spectral",
        weight_decay: float = 0.01,
        stacked: bool = False,
    ):
        super().__init__(learning_rate, momentum, nesterov, ns_steps, ns_precision, weight_decay, stacked)
        self.scale = check_scale(scale)
        self.moves = "spectral" if scale == "spectral" else "entrywise"

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        direction = state.pop("direction")
        rows, columns = direction.shape[-2:]
        if self.scale == "spectral":
            scale = max(1, rows / columns) ** 0.5
        else:
            scale = 0.2 * max(rows, columns) ** 0.5
        return direction.reshape(gradient.shape) * (self.learning_rate * scale)


def check_scale(scale: Scale) -> Scale:
    """``scale``, if it is one of the two. Raises: ConfigError."""
    if scale not in ("spectral", "match_rms_adamw"):
        raise ConfigError(f"scale={scale} is unknown: choose spectral or match_rms_adamw")
    return scale


class HiddenMatrices(MultiOptimizer):
    """One optimizer for hidden matrices, and another for embeddings, the head and vectors.

    Parameters are told apart by name and shape, see `lmxexp.optim.roles`. A weight of more than two axes is a
    convolution's if ``conv`` is in its path, else a stack of matrices.

    Args:
        make: ``make(stacked)`` makes the optimizer of hidden matrices, or of stacks of them.
        others: Factory of the other optimizer, with a learning rate of its own.

    Raises:
        ConfigError: A setting is outside its range.
    """

    def __init__(self, make: Callable[[bool], Optimizer], others: OptimizerFactory):
        super().__init__(
            [make(False), make(True), others()],
            [
                lambda path, parameter: is_hidden_matrix(path, parameter) and not is_stack(path, parameter),
                is_hidden_matrix,
            ],
        )

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        return in_order_of(gradients, super().apply_gradients(gradients, parameters))


class MuonWithAdamW(HiddenMatrices):
    """Muon for hidden matrices, AdamW for embeddings, the head and vectors, see `HiddenMatrices`.

    Args:
        learning_rate: Muon's: a number, or a callable from the step to a float32 scalar.
        adamw: Factory of the other optimizer, with a learning rate of its own.
        momentum, nesterov, ns_steps, ns_precision, scale, weight_decay: See `Muon`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `Muon`.
    """

    group_names = ("muon", "muon", "adamw")

    def __init__(
        self,
        learning_rate: float | Schedule,
        adamw: OptimizerFactory,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "spectral",
        weight_decay: float = 0.01,
    ):
        super().__init__(
            lambda stacked: Muon(
                learning_rate, momentum, nesterov, ns_steps, ns_precision, scale, weight_decay, stacked
            ),
            adamw,
        )
