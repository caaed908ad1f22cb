"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.ops.matrix_roots import in_turn, orthonormal_columns
from lmxexp.optim.shampoo import KroneckerStatistics, State


class SOAP(KroneckerStatistics):
    """Adam whose mean square is kept, and divided by, in coordinates in which gradients are nearly uncorrelated.

    The coordinates of a matrix's rows and columns are the eigenvectors of means of ``G G^T`` and ``G^T G``, followed by
    one iteration of the power method and an orthonormalisation every ``precondition_every`` steps. They start as the
    identity, that is as Adam. The authors' code starts with the eigenvectors of the first gradient's statistics and
    throws that step away. In a compiled step that would cost a second decomposition at every step; and where a matrix
    is not square the first gradient leaves some of those eigenvectors to chance.

    The orthonormalisation is made of products but for small blocks. They are a kernel's on CUDA; elsewhere LAPACK does
    them on the CPU, so that the step on a Mac's GPU waits for it some times
    (`lmxexp.ops.matrix_roots.orthonormal_columns`). For both sides of a 768 x 3072 matrix it is 1 TFLOP. Matrices of
    one shape take turns, so that with as many of them as ``precondition_every`` each step has one of each shape.
    Coordinates that come out not orthonormal, or not finite, are not taken.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; as AdamW's.
        betas: How much of the mean gradient, and of all its second moments, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.
        precondition_every: Steps from one change of a matrix's coordinates to the next.
        max_dim: A longer axis keeps its coordinates. A matrix of two such axes is AdamW's.

    Raises:
        ConfigError: A setting is outside its range.

    Source: N. Vyas et al., 2024, SOAP: Improving and Stabilizing Shampoo using Adam,
        https://arxiv.org/abs/2409.11321, algorithms 3 and 4; eigenvectors are sorted by their eigenvalues before the
        orthonormalisation, and the mean square with them, as in the authors' code. Bias correction and ``eps`` are
        Adam's; the authors' code adds ``eps`` to the uncorrected root.
    """

    made_of_it = "basis"

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.95, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        precondition_every: int = 10,
        max_dim: int = 10_000,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay, precondition_every, max_dim)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        updated = super().apply_gradients(gradients, parameters)
        # After the change: a gradient does not choose the coordinates that it is divided in.
        self.accumulate(gradients)
        for (shape, _), sides in self.grouped_sides().items():
            kept = mx.broadcast_to(mx.arange(shape[-1]), shape[:-1])
            items = [(state[name], state[f"{name}_basis"]) for state, name in sides]
            new = in_turn(_iterate, items, [(basis, kept) for _, basis in items], self.step, self.refresh.every)
            for (state, name), (basis, order) in zip(sides, new, strict=True):
                state[f"{name}_basis"] = basis
                self._sort(state, name, order)
        return updated

    def _sort(self, state: State, name: str, order: mx.array) -> None:
        v = self.as_matrices(state["v"], state)
        rows = name == "left"
        order = mx.broadcast_to(order[..., :, None] if rows else order[..., None, :], v.shape)
        state["v"] = mx.take_along_axis(v, order, axis=-2 if rows else -1).reshape(state["v"].shape)

    def change(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        if not self.has_sides(state):
            return super().change(gradient, parameter, state)
        beta1, beta2 = self.betas
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        squared = mx.square(self._rotated(gradient, state)).reshape(gradient.shape)
        state["v"] = state["v"] * beta2 + squared * (1 - beta2)
        rate, correction = self.rate_and_correction()
        root_mean_square = mx.sqrt(self.as_matrices(state["v"], state)) * correction
        direction = self._rotated(state["m"], state) * rate / (root_mean_square + self.eps)
        if "left" in state:
            direction = state["left_basis"] @ direction
        if "right" in state:
            direction = direction @ mx.swapaxes(state["right_basis"], -1, -2)
        return direction.reshape(gradient.shape)

    def _rotated(self, x: mx.array, state: State) -> mx.array:
        x = self.as_matrices(x, state)
        if "left" in state:
            x = mx.swapaxes(state["left_basis"], -1, -2) @ x
        return x @ state["right_basis"] if "right" in state else x


# Relative to the statistics' norm. What is in no gradient keeps its coordinates instead of having none.
_FLOOR = 1e-7


def _iterate(statistics: mx.array, basis: mx.array) -> tuple[mx.array, mx.array]:
    """One iteration of the power method: the new basis, and which of the old columns each of its columns was."""
    largest = mx.abs(statistics).max(axis=(-2, -1), keepdims=True)
    statistics = statistics / mx.where(largest > 0, largest, 1.0)
    product = statistics @ basis
    norm = mx.sqrt(mx.square(statistics).sum(axis=(-2, -1), keepdims=True))
    product = product + basis * (mx.where(norm > 0, norm, 1.0) * _FLOOR)
    order = mx.argsort(-(basis * product).sum(axis=-2), axis=-1)
    columns = mx.broadcast_to(order[..., None, :], product.shape)
    new, error = orthonormal_columns(mx.take_along_axis(product, columns, axis=-1))
    works = error < 1e-3
    kept = mx.arange(order.shape[-1])
    return mx.where(works, new, basis), mx.where(works[..., 0], order.astype(mx.int32), kept)
