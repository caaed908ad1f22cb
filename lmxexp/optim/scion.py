"""Scion: every layer moves to where its own norm's ball lies furthest down the mean gradient."""

from __future__ import annotations

import math

import mlx.core as mx
from mlx.optimizers import MultiOptimizer

from lmxexp.interfaces import Schedule
from lmxexp.ops.trees import in_order_of
from lmxexp.optim.checks import check_fraction, check_positive
from lmxexp.optim.full_precision import FullPrecision, zeros
from lmxexp.optim.muon import Orthogonalized, Precision
from lmxexp.optim.roles import is_hidden_matrix, is_matrix, is_stack


class Spectral(Orthogonalized):
    """The ball of the spectral norm, as an operator from inputs to outputs of RMS 1: ``(out / in)**0.5 * U @ V.T``.

    Args:
        learning_rate, momentum, ns_steps, ns_precision, stacked: See `Orthogonalized`.
        radius, constrained: See `Scion`. The radius of a convolution is divided by its width.

    Raises:
        ConfigError: A setting is outside its range.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float,
        radius: float,
        constrained: bool,
        ns_steps: int,
        ns_precision: Precision,
        stacked: bool,
    ):
        super().__init__(learning_rate, momentum, False, ns_steps, ns_precision, 0.0, stacked)
        self.radius = check_positive("radius", radius)
        self.constrained = constrained

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        if self.stacked:
            n_out, n_in, width = *gradient.shape[-2:], 1
        else:
            n_out, *kernel, n_in = gradient.shape
            width = math.prod(kernel)
        furthest = state.pop("direction").reshape(gradient.shape) * ((n_out / n_in) ** 0.5 / width)
        return _change(self, furthest, parameter)


class _Elementwise(FullPrecision):
    """A ball whose furthest point takes no product of matrices. Arguments: see `Scion`."""

    def __init__(self, learning_rate: float | Schedule, momentum: float, radius: float, constrained: bool, name: str):
        super().__init__(learning_rate)
        self.momentum = check_fraction("momentum", momentum)
        self.radius = check_positive(name, radius)
        self.constrained = constrained

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        state["m"] = state["m"] * self.momentum + gradient * (1 - self.momentum)
        return _change(self, self.furthest(state["m"]), parameter)

    def furthest(self, mean: mx.array) -> mx.array:
        """The point of the ball of radius 1 that lies furthest along ``mean``."""
        raise NotImplementedError


class Sign(_Elementwise):
    """The ball of the largest number: of embeddings, whose inputs are one-hot."""

    def furthest(self, mean: mx.array) -> mx.array:
        return mx.sign(mean)


class SignPerInput(_Elementwise):
    """The same, divided by the number of inputs: of the head, from inputs of RMS 1 to logits."""

    def furthest(self, mean: mx.array) -> mx.array:
        return mx.sign(mean) * (1 / mean.shape[-1])


class RootMeanSquare(_Elementwise):
    """The ball of the root mean square: for biases, norms and everything else that is no matrix."""

    def furthest(self, mean: mx.array) -> mx.array:
        return mean / (mx.sqrt(mx.square(mean).mean()) + 1e-8)


def _change(ball: Spectral | _Elementwise, furthest: mx.array, parameter: mx.array) -> mx.array:
    """Along the furthest point, or, with ``constrained``, the part ``learning_rate`` of the way to it."""
    change = furthest * ball.once_a_step("rate", lambda: ball.learning_rate * ball.radius)
    return change + parameter * ball.learning_rate if ball.constrained else change


class Scion(MultiOptimizer):
    """Each layer has a norm, and moves by a fixed length in it, in the direction that goes down most steeply.

    Hidden matrices have the spectral norm, embeddings and the head that of their largest number, and vectors their root
    mean square; so nothing is left to another optimizer, and one momentum is all the state. Lengths are those of
    outputs, which is why the learning rate and the radii found for a small model suit a larger one.

    Args:
        learning_rate: A number below 1, or a callable from the step to a float32 scalar.
        momentum: How much of the running mean of gradients stays at each step, in [0, 1): 1 less the paper's alpha.
        radius: Of the balls of hidden matrices and vectors.
        radius_head: Of the head's ball, which is divided by the number of its inputs.
        radius_embedding: Of the embeddings' ball. None: the head's rule and radius, as in the authors' experiments,
            where embedding and head are one matrix.
        constrained: Move the part ``learning_rate`` of the way from where the parameter is to the ball's furthest point
            (the paper's algorithm 2), so that every parameter stays within its ball or shrinks towards it: a weight
            decay of 1, for vectors too. False: move by ``learning_rate`` times that point (algorithm 1).
        ns_steps: Newton-Schulz iterations; 5 as published.
        ns_precision: Type of their products, see `lmxexp.optim.muon.Orthogonalized`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: T. Pethick et al., 2025, Training Deep Learning Models with Norm-Constrained LMOs,
        https://arxiv.org/abs/2502.07529, algorithms 1 and 2, layers Sign, Spectral, Sign; radii and learning rate of
        GPT-2 small from the authors' code (https://github.com/LIONS-EPFL/scion). The authors advise to start from the
        balls' boundary and to scale activations; what a model starts from and is made of is chosen elsewhere here.
    """

    group_names = ("hidden", "hidden", "head", "embedding", "vectors")

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.9,
        radius: float = 50.0,
        radius_head: float = 3000.0,
        radius_embedding: float | None = None,
        constrained: bool = False,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
    ):
        def head() -> SignPerInput:
            return SignPerInput(learning_rate, momentum, radius_head, constrained, "radius_head")

        if radius_embedding is None:
            embedding = head()
        else:
            embedding = Sign(learning_rate, momentum, radius_embedding, constrained, "radius_embedding")
        super().__init__(
            [
                Spectral(learning_rate, momentum, radius, constrained, ns_steps, ns_precision, stacked=False),
                Spectral(learning_rate, momentum, radius, constrained, ns_steps, ns_precision, stacked=True),
                head(),
                embedding,
                RootMeanSquare(learning_rate, momentum, radius, constrained, "radius"),
            ],
            [
                lambda path, parameter: is_hidden_matrix(path, parameter) and not is_stack(path, parameter),
                is_hidden_matrix,
                lambda path, parameter: is_matrix(path, parameter) and "lm_head" in path,
                is_matrix,
            ],
        )

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        return in_order_of(gradients, super().apply_gradients(gradients, parameters))
