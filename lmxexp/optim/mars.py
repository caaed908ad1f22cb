"""MARS: AdamW on gradients whose variance is reduced by the last step's."""

from __future__ import annotations

import math

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.optim.adamw import AdamW
from lmxexp.optim.full_precision import zeros
from lmxexp.optim.roles import is_stack


class MARS(AdamW):
    """AdamW that extrapolates each gradient away from the last one and clips it to a norm of 1.

    Where Adam sees the gradient ``g``, here it sees ``g + gamma * beta1 / (1 - beta1) * (g - last g)``, divided by its
    norm if that is above 1. The norm is of each parameter alone, and of each matrix in a stack (experts). This is
    MARS-AdamW in its approximate form, which takes the last step's gradient as it was; the exact one computes the
    gradient of the last step's parameters on this step's batch as well. Three arrays of state.

    Parameters of fewer than two axes (norms, biases) get plain Adam, as in the authors' experiments; theirs had betas
    and a learning rate of their own, here they are the same.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        gamma: How much of the correction is applied; 0: none, 1: all of it.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: H. Yuan et al., 2024, MARS: Unleashing the Power of Variance Reduction for Training Large Models,
        https://arxiv.org/abs/2411.10438, algorithm 2 with the last gradient for that of the last parameters. At the
        first step there is no correction, as the paper starts with two equal sets of parameters; the authors' code
        takes a last gradient of 0 there. The norm of each parameter alone is the authors' code's.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.95, 0.99],  # noqa: B006 - never changed
        eps: float = 1e-8,
        gamma: float = 0.025,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)
        if not 0 <= gamma < math.inf:
            raise ConfigError(f"gamma={gamma} must not be negative: 0.025 is the published number")
        self.gamma = gamma

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        last = {"last_gradient": zeros(parameter)} if parameter.ndim >= 2 else {}
        return super().moments(parameter) | last

    def _apply(self, path: str, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        gradient = gradient.astype(mx.float32)
        if parameter.ndim >= 2:
            corrected = gradient + (gradient - state["last_gradient"]) * self.once_a_step("share", self._share)
            state["last_gradient"] = gradient
            axes = (-2, -1) if is_stack(path, parameter) else None
            norm = mx.sqrt(mx.square(corrected).sum(axis=axes, keepdims=True))
            gradient = corrected / mx.maximum(norm, 1.0)
        return super()._apply(path, gradient, parameter, state)

    def _share(self) -> mx.array:
        """What the difference to the last gradient is multiplied by: nothing at the first step."""
        beta1 = self.betas[0]
        return (self.step > 1).astype(mx.float32) * (self.gamma * (beta1 / (1 - beta1)))
