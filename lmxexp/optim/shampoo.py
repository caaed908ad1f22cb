"""Shampoo: gradients whitened over rows and columns; and what it shares with SOAP and Kron."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map_with_path

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.ops.matrix_roots import SMALLEST_DAMPING, in_turn, inverse_root
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.roles import is_matrix, is_stack

State = dict[str, mx.array]


@dataclass(frozen=True)
class Refresh:
    """How often a preconditioner is computed. No bare number: members of one population cannot differ in it."""

    every: int


class Preconditioned(AdamW):
    """An optimizer with a matrix for the rows and one for the columns of each matrix, and AdamW for everything else.

    A subclass says what a side of a matrix has for its state (`side`), and what is done for all matrices before or
    after the change, with `grouped` and `lmxexp.ops.matrix_roots.in_turn`. Experts are a stack of matrices, each by
    itself; a convolution is one matrix, ``(out, everything else)``.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.
        precondition_every: Steps from one computation of a preconditioner to the next. Those of one shape are spread
            evenly over these steps.
        max_dim: A longer axis has no matrix of its own. A matrix of two such axes is AdamW's.

    Raises:
        ConfigError: A setting is outside its range.
    """

    sides = ("left", "right")
    moves = None  # a whitened change of elements as large as Adam's is far smaller in its spectral norm

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float],
        eps: float,
        weight_decay: float,
        precondition_every: int,
        max_dim: int,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)
        self.refresh = Refresh(check_count("precondition_every", precondition_every, 10))
        self.max_dim = check_count("max_dim", max_dim, 10_000)

    def side(self, name: str, leading: tuple[int, ...], size: int) -> State:
        """The state of a side of ``size`` rows or columns of a matrix, or of a stack of them, before the first step."""
        raise NotImplementedError

    def init(self, parameters: dict) -> None:
        super().init(parameters)
        tree_map_with_path(self._add_sides, parameters, self.state)

    def _add_sides(self, path: str, parameter: mx.array, state: State) -> None:
        if not is_matrix(path, parameter) or self.has_sides(state):
            return
        *leading, rows, columns = parameter.shape
        if not is_stack(path, parameter):
            leading, rows, columns = [], parameter.shape[0], parameter.size // parameter.shape[0]
        if min(rows, columns) <= self.max_dim:
            for name, size in zip(self.sides, (rows, columns), strict=True):
                state.update(self.side(name, tuple(leading), size))

    def has_sides(self, state: State) -> bool:
        """Whether it is a matrix's."""
        return any(isinstance(state.get(name), mx.array) for name in self.sides)

    def as_matrices(self, x: mx.array, state: State) -> mx.array:
        """A parameter's gradient or the like as a matrix or a stack of them: ``(..., rows, columns)``, row by row.

        Gradients come in either order of rows and columns, which OpenBLAS sums in different orders; a population's come
        in another than a single model's.
        """
        n_axes = next(state[name].ndim for name in self.sides if name in state)
        return mx.contiguous(x if x.ndim == n_axes else x.reshape(x.shape[0], -1))

    def of_matrices(self) -> Iterator[tuple[str, State]]:
        """Path and state of each matrix, in the order of their paths: that of the state's tree changes when a
        checkpoint is restored."""
        return iter(sorted(_states(self.state, "", self.has_sides), key=lambda pair: pair[0]))


class KroneckerStatistics(Preconditioned):
    """Shampoo's statistics: means of ``G G^T`` and ``G^T G``, under ``left`` and ``right``."""

    def side(self, name: str, leading: tuple[int, ...], size: int) -> State:
        if size > self.max_dim:
            return {}
        start = mx.broadcast_to(mx.eye(size), (*leading, size, size))
        return {name: mx.zeros_like(start), f"{name}_{self.made_of_it}": mx.array(start)}

    made_of_it: str
    """What a subclass computes from a side's statistics, as it is called in the state; the identity at first."""

    def accumulate(self, gradients: dict) -> None:
        """One more gradient in the statistics."""
        tree_map_with_path(self._accumulate, gradients, self.state)

    def _accumulate(self, _: str, gradient: mx.array, state: State) -> None:
        if not self.has_sides(state):
            return
        beta2 = self.betas[1]
        g = self.as_matrices(gradient.astype(mx.float32), state)
        transposed = mx.swapaxes(g, -1, -2)
        if "left" in state:
            state["left"] = state["left"] * beta2 + (g @ transposed) * (1 - beta2)
        if "right" in state:
            state["right"] = state["right"] * beta2 + (transposed @ g) * (1 - beta2)

    def grouped_sides(self) -> dict[Any, list[tuple[State, str]]]:
        """All sides, those of one shape and with equally many sides in their matrix together."""
        groups: dict[Any, list[tuple[State, str]]] = {}
        for _, state in self.of_matrices():
            names = [name for name in self.sides if name in state]
            for name in names:
                groups.setdefault((state[name].shape, len(names)), []).append((state, name))
        return groups


class Shampoo(KroneckerStatistics):
    """Multiplies the mean gradient by ``L^(-1/4)`` from the left and ``R^(-1/4)`` from the right.

    L and R are means of ``G G^T`` and ``G^T G``. Of a matrix with an axis above ``max_dim``, the other has the inverse
    square root. The direction is Shampoo's and the length Adam's (grafting), matrix by matrix. Before all
    preconditioners were computed once, after ``precondition_every`` steps, the direction is Adam's too.

    Inverse roots are products alone, so that the step stays on its device. One that does not converge, or is not
    finite, is not taken: the one before stays. Of a 768 x 3072 matrix both roots are 5 TFLOPs, more than forward and
    backward pass of 300,000 tokens through it: hence ``precondition_every``.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; as AdamW's.
        betas: How much of the mean gradient, and of all its second moments, stays at each step; in [0, 1).
        eps: Added to Adam's root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.
        precondition_every: Steps from one computation of a matrix's roots to the next.
        damping: Added to L and R, relative to their Frobenius norm; at least 1e-7, as fp32 has no more digits.
        max_dim: A longer axis is not preconditioned. A matrix of two such axes is AdamW's.

    Raises:
        ConfigError: A setting is outside its range.

    Source: V. Gupta et al., 2018, Shampoo: Preconditioned Stochastic Tensor Optimization,
        https://arxiv.org/abs/1802.09568, algorithm 1, with means instead of sums; R. Anil et al., 2020, Scalable Second
        Order Optimization for Deep Learning, https://arxiv.org/abs/2002.09018 (grafting, roots, relative damping);
        H.-J. Shi et al., 2023, A Distributed Data-Parallel PyTorch Implementation of the Distributed Shampoo Optimizer,
        https://arxiv.org/abs/2309.06497, algorithm 2 (the mean gradient is preconditioned, grafting from Adam).
    """

    made_of_it = "root"

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        precondition_every: int = 10,
        damping: float = 1e-6,
        max_dim: int = 10_000,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay, precondition_every, max_dim)
        if not SMALLEST_DAMPING <= damping < 1:
            raise ConfigError(
                f"damping={damping} must lie in [{SMALLEST_DAMPING:g}, 1): fp32 has no more digits; try 1e-6"
            )
        self.damping = damping

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        if not self._initialized:
            self.init(gradients)
        self.accumulate(gradients)
        for (_, n_sides), sides in self.grouped_sides().items():
            items = [(state[name], state[f"{name}_root"]) for state, name in sides]
            roots = in_turn(
                self._roots(2 * n_sides), items, [item[1:] for item in items], self.step + 1, self.refresh.every
            )
            for (state, name), (root,) in zip(sides, roots, strict=True):
                state[f"{name}_root"] = root
        return super().apply_gradients(gradients, parameters)

    def _roots(self, root: int) -> Callable[[mx.array, mx.array], tuple[mx.array]]:
        def compute(statistics: mx.array, before: mx.array) -> tuple[mx.array]:
            new, error = inverse_root(statistics, root, self.damping)
            return (mx.where(error < 0.1, new, before),)

        return compute

    def change(self, gradient: mx.array, parameter: mx.array, state: State) -> mx.array:
        adam = super().change(gradient, parameter, state)
        if not self.has_sides(state):
            return adam
        direction = self.as_matrices(state["m"], state)
        if "left" in state:
            direction = state["left_root"] @ direction
        if "right" in state:
            direction = direction @ state["right_root"]
        grafted = self.as_matrices(adam, state)
        length = _norm(direction)
        grafted = direction * (_norm(grafted) / mx.where(length > 0, length, 1.0))
        grafted = grafted.reshape(adam.shape)
        if self.refresh.every == 1:
            return grafted
        return mx.where(self.step < self.refresh.every, adam, grafted)


def check_count(name: str, value: Any, example: int) -> int:
    """``value``, if it is a whole number of at least 1. Raises: ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name}={value} must be a whole number of at least 1: try {example}")
    return value


def _norm(matrices: mx.array) -> mx.array:
    """Frobenius, of each. Divided by the largest number first: squares of small ones leave fp32's range."""
    largest = mx.abs(matrices).max(axis=(-2, -1), keepdims=True)
    scaled = matrices / mx.where(largest > 0, largest, 1.0)
    return mx.sqrt(mx.square(scaled).sum(axis=(-2, -1), keepdims=True)) * largest


def _states(tree: Any, path: str, is_one: Callable[[State], bool]) -> Iterator[tuple[str, State]]:
    if isinstance(tree, dict) and is_one(tree):
        yield path, tree
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _states(value, f"{path}.{key}" if path else str(key), is_one)
