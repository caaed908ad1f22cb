"""NAdamW: AdamW with Nesterov's look ahead in the mean of the gradient."""

from __future__ import annotations

import math

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Schedule
from lmxexp.optim.adamw import AdamW


class NAdamW(AdamW):
    """AdamW whose direction already counts the gradient of this step as the next step would.

    The momentum warms up: at step t it is ``beta1 * (1 - 0.96**(t * momentum_decay) / 2)``, half of ``beta1`` first and
    ``beta1`` in the end. So the bias correction of the mean is a product over steps, which is part of the state.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar.
        betas: How much of the mean (in the end), and of the mean square, stays at each step; in [0, 1).
        eps: Added to the root mean square.
        momentum_decay: How fast the momentum warms up; 0: never.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: T. Dozat, 2016, Incorporating Nesterov Momentum into Adam,
        https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ, with the decay of `lmxexp.optim.adamw`. The same as
        PyTorch's NAdam with ``decoupled_weight_decay``.
    """

    elementwise = True

    def __init__(
        self,
        learning_rate: float | Schedule,
        betas: list[float] = [0.9, 0.95],  # noqa: B006 - never changed
        eps: float = 1e-8,
        momentum_decay: float = 4e-3,
        weight_decay: float = 0.1,
    ):
        super().__init__(learning_rate, betas, eps, weight_decay)
        if not 0 <= momentum_decay < math.inf:
            raise ConfigError(f"momentum_decay={momentum_decay} must not be negative: 4e-3 is the published number")
        self.momentum_decay = momentum_decay
        self.state["momentum_product"] = mx.array(1.0)

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        state["m"] = state["m"] * beta1 + gradient * (1 - beta1)
        state["v"] = state["v"] * beta2 + mx.square(gradient) * (1 - beta2)
        product = self.once_a_step("product", self._next_product)
        rate_of_gradient = self.once_a_step("rate_of_gradient", lambda: self._rate_of_gradient(product))
        rate_of_mean = self.once_a_step("rate_of_mean", lambda: self._rate_of_mean(product))
        correction = self.once_a_step("correction", lambda: mx.rsqrt(self._weight_so_far(beta2)))
        root_mean_square = mx.sqrt(state["v"]) * correction
        return (gradient * rate_of_gradient + state["m"] * rate_of_mean) / (root_mean_square + self.eps)

    def _next_product(self) -> mx.array:
        product = self.state["momentum_product"] = self.state["momentum_product"] * self._momentum(self.step)
        return product

    def _rate_of_gradient(self, product: mx.array) -> mx.array:
        beta1 = self.betas[0]
        rest = self._warmup(self.step) * beta1 + (1 - beta1)  # 1 - momentum, exact where beta1 is close to 1
        return self.learning_rate * rest / (1 - product)

    def _rate_of_mean(self, product: mx.array) -> mx.array:
        following = self._momentum(self.step + 1)
        return self.learning_rate * following / (1 - product * following)

    def _momentum(self, step: mx.array) -> mx.array:
        return (1 - self._warmup(step)) * self.betas[0]

    def _warmup(self, step: mx.array) -> mx.array:
        return mx.exp(step.astype(mx.float32) * math.log(0.96) * self.momentum_decay) * 0.5
