"""Dion: the strongest directions of a momentum alone, for hidden matrices; AdamW for everything else."""

from __future__ import annotations

import math

import mlx.core as mx

from lmxexp.interfaces import ConfigError, OptimizerFactory, Schedule
from lmxexp.optim.checks import check_positive
from lmxexp.optim.muon import HiddenMatrices, OfMatrices

QR_STEPS = 30
"""Enough for columns that a matrix's condition of 1e4 separates; each step gains a factor of 1.5, then doubles the
digits."""


def orthonormal_columns(matrix: mx.array) -> mx.array:
    """The Q of a QR decomposition, but for the columns' signs, from products of matrices alone.

    MLX's own decomposition, and its Cholesky factors, run on the CPU. Here the columns are multiplied again and again
    by an upper triangular matrix, which leaves the spans of the first, the first two, … as they are: ``1 - T``, where
    ``T`` is the upper triangle, with half the diagonal, of how far the columns' products are from the identity. Near
    the goal it is Newton's iteration; it makes up for its own rounding, as products are always those of the present
    columns.
    Columns that depend on those before them stay shorter than 1, where a decomposition makes up a direction.

    Shapes: ``(..., rows, columns)``, with no more columns than rows, to the same, fp32.
    """
    n = matrix.shape[-1]
    identity = mx.eye(n)
    upper = mx.triu(mx.ones((n, n))) - identity * 0.5
    x = matrix / (mx.abs(matrix).max(axis=(-2, -1), keepdims=True) + 1e-30)
    x = x / (mx.sqrt(mx.square(x).sum(axis=-2, keepdims=True)) + 1e-18)
    # No singular value is above 1 then: the largest row sum bounds that of the product.
    bound = mx.abs(mx.swapaxes(x, -1, -2) @ x).sum(axis=-1, keepdims=True).max(axis=-2, keepdims=True)
    x = x / mx.sqrt(mx.maximum(bound, 1.0))
    for _ in range(QR_STEPS):
        x = x - x @ ((mx.swapaxes(x, -1, -2) @ x - identity) * upper)
    return x


class Dion(OfMatrices):
    """One step of power iteration a step finds a momentum's strongest directions; all get the same weight.

    What was applied is taken out of the momentum, to the part ``1 - momentum``; the rest stays and is not lost. With a
    low rank the products are smaller than Muon's, and the state is ``columns * rank`` numbers larger.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; times ``(rows / columns)**0.5``
            roughly the spectral norm of one change.
        momentum: How much of the directions that were applied stays in the momentum, in [0, 1).
        rank_fraction: The number of directions, as a fraction of the smaller side, rounded up; in (0, 1].
        eps: Added to the norms of the columns that are divided by them.
        weight_decay, stacked: See `OfMatrices`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: K. Ahn et al., 2025, Dion: Distributed Orthonormalized Updates, https://arxiv.org/abs/2504.05295,
        algorithm 1. The QR decomposition there is `orthonormal_columns` here. Where the momentum is all zero, the
        directions to start from are kept, rather than lost for ever.
    """

    moves = "spectral"

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.95,
        rank_fraction: float = 0.25,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        stacked: bool = False,
    ):
        super().__init__(learning_rate, momentum, weight_decay, stacked)
        if not 0 < rank_fraction <= 1:
            raise ConfigError(f"rank_fraction={rank_fraction} must lie in (0, 1]: try 0.25")
        self.rank_fraction = rank_fraction
        self.eps = check_positive("eps", eps)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        *stack, rows, columns = self.as_matrices(parameter).shape
        rank = math.ceil(self.rank_fraction * min(rows, columns))
        start = mx.random.normal((*stack, columns, rank), key=mx.random.key(0))
        return super().moments(parameter) | {"q": start}

    def before(self, gradient: mx.array, state: dict[str, mx.array]) -> mx.array:
        state["m"] = state["m"] + gradient
        return self.as_matrices(state["m"]) @ state["q"]

    def together(self, matrices: mx.array) -> mx.array:
        return orthonormal_columns(matrices)

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        p = state.pop("direction")
        momentum = self.as_matrices(state["m"])
        rows, columns = momentum.shape[-2:]
        r = mx.swapaxes(momentum, -1, -2) @ p
        applied = p @ mx.swapaxes(r, -1, -2)
        state["m"] = (momentum - applied * (1 - self.momentum)).reshape(gradient.shape)
        norm = mx.sqrt(mx.square(r).sum(axis=-2, keepdims=True))
        state["q"] = mx.where(norm > 0, r / (norm + self.eps), state["q"])
        direction = p @ mx.swapaxes(state["q"], -1, -2)
        return direction.reshape(gradient.shape) * (self.learning_rate * (rows / columns) ** 0.5)


class DionWithAdamW(HiddenMatrices):
    """Dion for hidden matrices, AdamW for embeddings, the head and vectors, see `HiddenMatrices`.

    Args:
        learning_rate: Dion's: a number, or a callable from the step to a float32 scalar.
        adamw: Factory of the other optimizer, with a learning rate of its own.
        momentum, rank_fraction, eps, weight_decay: See `Dion`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `Dion`.
    """

    group_names = ("dion", "dion", "adamw")

    def __init__(
        self,
        learning_rate: float | Schedule,
        adamw: OptimizerFactory,
        momentum: float = 0.95,
        rank_fraction: float = 0.25,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        super().__init__(
            lambda stacked: Dion(learning_rate, momentum, rank_fraction, eps, weight_decay, stacked), adamw
        )
