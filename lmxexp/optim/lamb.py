"""LAMB: AdamW whose change of a matrix is as large as the matrix."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.roles import is_matrix, is_stack


class LAMB(AdamW):
    """AdamW whose change, decay included, is scaled to the norm of the matrix that it changes.

    So the learning rate is the size of a change relative to the matrix, and ``weight_decay`` only turns the direction:
    where the gradient vanishes, a matrix shrinks by the whole learning rate. Each matrix of a stack (experts) has its
    own norm. A matrix of zeros, and one whose change is zero, are left to AdamW.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; relative for matrices.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Share of a matrix that is added to its direction before that is scaled; see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: Y. You et al., 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes,
        https://arxiv.org/abs/1904.00962, algorithm 2, with bias correction and with the identity for its phi. Norms and
        biases are not scaled and have no decay, as in the authors' training of BERT.
    """

    moves = None  # a matrix by a part of its own size

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.999],  # noqa: B006 - never changed
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)

    def _apply(self, path: str, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        weight = parameter.astype(mx.float32)
        change = self.change(gradient.astype(mx.float32), weight, state)
        if is_matrix(path, parameter):
            if self.weight_decay:
                change = change + weight * (self.learning_rate * self.weight_decay)
            change = change * self._trust_ratio(weight, change, (-2, -1) if is_stack(path, parameter) else None)
        return (weight - change).astype(parameter.dtype)

    def _trust_ratio(self, weight: mx.array, change: mx.array, axes: tuple[int, ...] | None) -> mx.array:
        """What makes the change ``learning_rate`` times as large as the weight."""
        target = _norm(weight, axes) * self.learning_rate
        size = _norm(change, axes)
        return mx.where((target > 0) & (size > 0), target / size, 1.0)


def _norm(x: mx.array, axes: tuple[int, ...] | None) -> mx.array:
    return mx.sqrt(mx.square(x).sum(axis=axes, keepdims=True))
