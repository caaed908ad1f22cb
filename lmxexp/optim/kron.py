"""Kron: PSGD's whitening with a Kronecker product of two triangular factors."""

from __future__ import annotations

import zlib
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.ops.cholesky import upper_inverse
from lmxexp.ops.matrix_roots import in_turn, norm_lower_bound
from lmxexp.optim.checks import check_positive
from lmxexp.optim.shampoo import Preconditioned, State

_TINY = 1e-30


class Kron(Preconditioned):
    """Multiplies the mean gradient by a matrix that learns, by descent of its own, to make it white.

    The preconditioner of a matrix is ``Q^T Q`` with ``Q`` a Kronecker product of an upper triangular matrix for the
    rows and one for the columns, a diagonal for an axis above ``max_dim``. It is fitted by multiplicative updates to
    the criterion ``E[g^T P g + v^T P^-1 v]`` with white noise ``v``, whose minimum whitens the gradient. The triangular
    inverse that this needs is made of products (`lmxexp.ops.cholesky.upper_inverse`): the step stays on its device.

    The noise is drawn from the step's number and the parameter's name: it needs no state, and a run that is resumed
    goes on with the same.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; 3 to 10 times below AdamW's.
        betas: How much of the mean gradient stays at each step, and, of what is AdamW's, of the mean square; in [0, 1).
        eps: Added to AdamW's root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`. 3 to 10 times above AdamW's.
        precondition_every: Steps from one update of a matrix's preconditioner to the next.
        precondition_rate: The preconditioner's own learning rate, in (0, 1).
        damping: Noise that is added to the gradient that the preconditioner learns from, so that what has none (a token
            that does not occur) does not make it grow without end.
        max_rms: Largest RMS of a matrix's change, before the learning rate.
        max_dim: A longer axis has a diagonal factor. A matrix of two such axes is AdamW's.

    Raises:
        ConfigError: A setting is outside its range.

    Source: X.-L. Li, 2018, Preconditioned Stochastic Gradient Descent, https://arxiv.org/abs/1512.04202 (criterion,
        Kronecker product); X.-L. Li, 2022, Black Box Lie Group Preconditioners for SGD,
        https://arxiv.org/abs/2211.04422 (updates on the group of triangular matrices); E. Walters, 2024,
        https://github.com/evanatyourservice/kron_torch (the optimizer as used for language models: the mean gradient
        is what is whitened, ``max_rms``); X.-L. Li, 2024, https://github.com/lixilinx/psgd_torch (``damping``). There
        the probability of an update falls from 1 to 0.03 in the first 4000 steps; here it is a period. Experts, there a
        tensor with three factors, are matrices with two each, and vectors AdamW's.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        weight_decay: float = 0.3,
        precondition_every: int = 1,
        precondition_rate: float = 0.1,
        damping: float = 1e-9,
        max_rms: float = 1.1,
        max_dim: int = 8192,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay, precondition_every, max_dim)
        if not 0 < precondition_rate < 1:
            raise ConfigError(f"precondition_rate={precondition_rate} must lie in (0, 1): try 0.1")
        if not damping >= 0:
            raise ConfigError(f"damping={damping} must not be negative: try 1e-9")
        self.precondition_rate = precondition_rate
        self.damping = damping
        self.max_rms = check_positive("max_rms", max_rms)

    def side(self, name: str, leading: tuple[int, ...], size: int) -> State:
        factor = mx.ones((size, 1)) if size > self.max_dim else mx.eye(size)
        return {name: mx.array(mx.broadcast_to(factor, (*leading, *factor.shape)))}

    def _add_sides(self, path: str, parameter: mx.array, state: State) -> None:
        super()._add_sides(path, parameter, state)
        if self.has_sides(state):
            state.pop("v", None)

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        if not self._initialized:
            self.init(gradients)
        tree_map_with_path(self._average, gradients, self.state)
        before = self.state["step"]
        self.state["step"] = before + 1  # that the bias correction and the noise are this step's
        try:
            self._fit_all()
        finally:
            self.state["step"] = before
        return super().apply_gradients(gradients, parameters)

    def _average(self, _: str, gradient: mx.array, state: State) -> None:
        if self.has_sides(state):
            beta1 = self.betas[0]
            state["m"] = state["m"] * beta1 + gradient.astype(mx.float32) * (1 - beta1)

    def _fit_all(self) -> None:
        groups: dict[Any, list[tuple[str, State]]] = {}
        for path, state in self.of_matrices():
            shapes = self.as_matrices(state["m"], state).shape, state["left"].shape, state["right"].shape
            groups.setdefault(shapes, []).append((path, state))
        for group in groups.values():
            items = [(_key(path, self.step), self._mean(state), state["left"], state["right"]) for path, state in group]
            factors = in_turn(self._fit, items, [item[2:] for item in items], self.step, self.refresh.every)
            for (_, state), (left, right) in zip(group, factors, strict=True):
                state["left"], state["right"] = left, right

    def _mean(self, state: State) -> mx.array:
        correction = self.once_a_step("mean", lambda: 1 / self._weight_so_far(self.betas[0]))
        return self.as_matrices(state["m"], state) * correction

    def _fit(self, keys: mx.array, g: mx.array, left: mx.array, right: mx.array) -> tuple[mx.array, mx.array]:
        """One update of the factors ``(k, ..., n, n or 1)`` of ``k`` matrices or stacks of matrices of one shape."""
        noise = mx.stack([mx.random.normal(g.shape[1:], key=keys[i]) for i in range(g.shape[0])])
        g = g + noise * self.damping
        # A = Q_L G Q_R^T and B = Q_L^-T V Q_R^-1: equal in their second moments once the preconditioner fits.
        a = _times(left, mx.swapaxes(_times(right, mx.swapaxes(g, -1, -2)), -1, -2))
        b = _times(_inverse_transposed(left), noise)
        b = mx.swapaxes(_times(_inverse_transposed(right), mx.swapaxes(b, -1, -2)), -1, -2)
        left = self._descend(left, a, b)
        right = self._descend(right, mx.swapaxes(a, -1, -2), mx.swapaxes(b, -1, -2))
        # Only the product of the two matters; equally large, neither leaves the range of fp32.
        largest = [mx.abs(q).max(axis=(-2, -1), keepdims=True) for q in (left, right)]
        balance = mx.sqrt(largest[1] / largest[0])
        return left * balance, right / balance

    def _descend(self, q: mx.array, a: mx.array, b: mx.array) -> mx.array:
        if q.shape[-1] == 1:
            of_a, of_b = (mx.square(x).sum(axis=-1, keepdims=True) for x in (a, b))
            rate = self.precondition_rate / ((of_a + of_b).max(axis=-2, keepdims=True) + _TINY)
            return q - q * (of_a - of_b) * rate
        of_a, of_b = (x @ mx.swapaxes(x, -1, -2) for x in (a, b))
        rate = self.precondition_rate / (norm_lower_bound(of_a + of_b) + _TINY)
        return q - (mx.triu(of_a - of_b) @ q) * rate

    def change(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        if not self.has_sides(state):
            return super().change(gradient, parameter, state)
        left, right = state["left"], state["right"]
        direction = _times_transposed(left, _times(left, self._mean(state)))
        direction = mx.swapaxes(direction, -1, -2)
        direction = mx.swapaxes(_times_transposed(right, _times(right, direction)), -1, -2)
        rms = mx.sqrt(mx.square(direction).mean(axis=(-2, -1), keepdims=True))
        direction = direction * mx.minimum(self.max_rms / (rms + 1e-6), 1.0)
        return direction.reshape(gradient.shape) * self.learning_rate


def _key(path: str, step: mx.array) -> mx.array:
    """Of the noise for a parameter at a step."""
    return mx.stack([mx.array(zlib.crc32(path.encode()), mx.uint32), step.astype(mx.uint32)])


def _times(factor: mx.array, x: mx.array) -> mx.array:
    """A factor, maybe a diagonal one, times matrices."""
    return x * factor if factor.shape[-1] == 1 else factor @ x


def _times_transposed(factor: mx.array, x: mx.array) -> mx.array:
    return x * factor if factor.shape[-1] == 1 else mx.swapaxes(factor, -1, -2) @ x


def _inverse_transposed(factor: mx.array) -> mx.array:
    return 1 / factor if factor.shape[-1] == 1 else mx.swapaxes(upper_inverse(factor), -1, -2)
