"""AdamW, as published: Adam with decoupled weight decay, on matrices only."""

from __future__ import annotations

from lmxexp.interfaces import Schedule
from lmxexp.optim.adam import Adam
from lmxexp.optim.checks import check_weight_decay


class AdamW(Adam):
    """Adam that also shrinks every matrix by ``learning_rate * weight_decay`` of itself at each step.

    MLX's AdamW decays vectors as well (norms, biases), and has Adam's shortcomings there.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: I. Loshchilov and F. Hutter, 2019, Decoupled Weight Decay Regularization, https://arxiv.org/abs/1711.05101,
        algorithm 2; the decay is multiplied by the whole learning rate, as in PyTorch, and not by the schedule alone.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps)
        self.weight_decay = check_weight_decay(weight_decay)
