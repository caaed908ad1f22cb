"""NorMuon: Muon whose neurons all move alike; AdamW for everything but hidden matrices."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import OptimizerFactory, Schedule
from lmxexp.optim.checks import check_fraction, check_positive
from lmxexp.optim.muon import HiddenMatrices, Orthogonalized, Precision, Scale, check_scale


class NorMuon(Orthogonalized):
    """A momentum made orthogonal, whose rows are divided by their own root mean squares; for hidden matrices only.

    The rows of Muon's change, one for each output neuron, differ much in their norms. Here each is divided by the root
    of a running mean of its mean square, one number of state a row, and the whole matrix is put back to a fixed norm.
    Because of that norm the running mean needs no bias correction: the factor is the same for all rows.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        momentum, nesterov, ns_steps, ns_precision, weight_decay, stacked: See `Orthogonalized`.
        beta2: How much of a row's mean square stays at each step, in [0, 1).
        eps: Added to the root mean squares of the rows, and to the norm that is divided by.
        scale: The norm of the change, per learning rate. ``match_rms_adamw``: an RMS of 0.2, the paper's, which takes
            AdamW's learning rate and weight decay as they are. ``spectral``: that of the orthogonal matrix, times
            ``max(1, rows / columns)**0.5``, so that Muon's learning rate stays; the authors' code.

    Raises:
        ConfigError: A setting is outside its range.

    Source: Z. Li et al., 2025, NorMuon: Making Muon more efficient and scalable, https://arxiv.org/abs/2510.05491,
        algorithm 1, which has no ``nesterov``; the authors' code (https://github.com/zichongli5/NorMuon) has, and
        ``scale=spectral``. A convolution is flattened to ``(out, everything else)`` throughout; the authors' code takes
        means and norms over the last axes of the filter.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-10,
        nesterov: bool = False,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "match_rms_adamw",
        weight_decay: float = 0.1,
        stacked: bool = False,
    ):
        super().__init__(learning_rate, momentum, nesterov, ns_steps, ns_precision, weight_decay, stacked)
        self.beta2 = check_fraction("beta2", beta2)
        self.eps = check_positive("eps", eps)
        self.scale = check_scale(scale)
        self.moves = "spectral" if scale == "spectral" else "entrywise"

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        rows = self.as_matrices(parameter).shape[:-1]
        return super().moments(parameter) | {"v": mx.zeros((*rows, 1), mx.float32)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        matrix = state.pop("direction")
        rows, columns = matrix.shape[-2:]
        squared = mx.square(matrix)
        state["v"] = state["v"] * self.beta2 + squared.mean(axis=-1, keepdims=True) * (1 - self.beta2)
        balanced = matrix / (mx.sqrt(state["v"]) + self.eps)
        norm = mx.sqrt(mx.square(balanced).sum(axis=(-2, -1), keepdims=True))
        if self.scale == "spectral":
            wanted = mx.sqrt(squared.sum(axis=(-2, -1), keepdims=True)) * max(1, rows / columns) ** 0.5
        else:
            wanted = 0.2 * (rows * columns) ** 0.5
        return (balanced * (wanted / (norm + self.eps))).reshape(gradient.shape) * self.learning_rate


class NorMuonWithAdamW(HiddenMatrices):
    """NorMuon for hidden matrices, AdamW for embeddings, the head and vectors, see `HiddenMatrices`.

    Args:
        learning_rate: NorMuon's: a number, or a callable from the step to a float32 scalar.
        adamw: Factory of the other optimizer, with a learning rate of its own.
        momentum, beta2, eps, nesterov, ns_steps, ns_precision, scale, weight_decay: See `NorMuon`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `NorMuon`.
    """

    group_names = ("normuon", "normuon", "adamw")

    def __init__(
        self,
        learning_rate: float | Schedule,
        adamw: OptimizerFactory,
        momentum: float = 0.95,
        beta2: float = 0.95,
        eps: float = 1e-10,
        nesterov: bool = False,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "match_rms_adamw",
        weight_decay: float = 0.1,
    ):
        super().__init__(
            lambda stacked: NorMuon(
                learning_rate, momentum, beta2, eps, nesterov, ns_steps, ns_precision, scale, weight_decay, stacked
            ),
            adamw,
        )
