"""Prodigy: Adam that finds its learning rate by itself."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.ops.once import once
from lmxexp.optim.checks import check_betas, check_positive
from lmxexp.optim.full_precision import FullPrecision, zeros


class Prodigy(FullPrecision):
    """Adam whose learning rate is an estimate of the distance from the start to the solution.

    The estimate ``d`` is one number for all parameters together, or for those of its group where the optimizer is one
    of several. It only grows. The learning rate that is set multiplies it, and is 1 unless something speaks against
    it; a schedule works as usual.

    Four arrays of state: two moments, a mean of gradients, and the first parameters. There is no bias correction.
    With parameters in bf16 the first steps, a millionth of a parameter, are all lost to rounding, and ``d`` never
    grows: use `train.precision=mixed` or a larger ``d0``.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar, that multiplies ``d``.
        betas: How much of the mean, and of the mean square, stays at each step; in [0, 1). The estimate's means keep
            the root of the second.
        eps: Added to the root mean square, as Adam's; times ``d``, since the moments are.
        d0: First estimate, far below the distance. Too small costs a few steps, too large never shrinks.
        d_coef: Multiplies new estimates; 1 as published.
        safeguard_warmup: Keep the schedule out of the estimate's denominator, so that ``d`` grows more slowly during a
            warmup; False as published.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`; multiplied by ``d`` as well.

    Shapes: beside what `FullPrecision` says, the state has ``d`` and ``r``, fp32 scalars.

    Raises:
        ConfigError: A setting is outside its range.

    Source: K. Mishchenko and A. Defazio, 2023, Prodigy: An Expeditiously Adaptive Parameter-Free Learner,
        https://arxiv.org/abs/2306.06101, algorithm 4, with decoupled decay, ``d_coef`` and ``safeguard_warmup`` as in
        the authors' code. That code multiplies ``eps`` by the new ``d`` instead of the old one.
    """

    def __init__(
        self,
        learning_rate: float | Schedule = 1.0,
        betas: list[float] = [0.9, 0.999],  # noqa: B006 - never changed
        eps: float = 1e-8,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        safeguard_warmup: bool = False,
        weight_decay: float = 0.0,
    ):
        super().__init__(learning_rate, weight_decay)
        self.betas = check_betas(betas)
        self.eps = check_positive("eps", eps)
        self.d0 = check_positive("d0", d0)
        self.d_coef = check_positive("d_coef", d_coef)
        self.safeguard_warmup = safeguard_warmup
        self._products: list[mx.array] = []
        self._norms: list[mx.array] = []

    @FullPrecision.learning_rate.getter
    def learning_rate(self) -> mx.array:
        """What changes and decay are multiplied by: the scheduled number times the estimate."""
        return self.state["learning_rate"] * self.state["d"]

    def init(self, parameters: dict) -> None:
        if "d" not in self.state:
            self.state["d"], self.state["r"] = mx.array(self.d0, mx.float32), mx.array(0.0)
        super().init(parameters)

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        state = {name: zeros(parameter) for name in ("m", "v", "s")}
        return {**state, "start": parameter.astype(mx.float32)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        beta1, beta2 = self.betas
        d = self.state["d"]
        scaled = gradient * d
        state["m"] = state["m"] * beta1 + scaled * (1 - beta1)
        state["v"] = state["v"] * beta2 + mx.square(scaled) * (1 - beta2)
        state["s"] = state["s"] * self._kept() + gradient * self.once_a_step("weight", self._weight_of_norm)
        self._products.append(mx.sum(gradient * (state["start"] - parameter)))
        self._norms.append(mx.sum(mx.abs(state["s"])))
        rate = self.once_a_step("rate", lambda: self.learning_rate)
        return state["m"] * rate / (mx.sqrt(state["v"]) + self.once_a_step("eps", lambda: d * self.eps))

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        try:
            updated = super().apply_gradients(gradients, parameters)
            if self._norms:
                self._estimate()
            return updated
        finally:
            self._products.clear()
            self._norms.clear()

    def _estimate(self) -> None:
        """Update ``d`` from what `change` found for all parameters."""
        state = self.state
        weight = self.learning_rate * state["d"] / self.d0 / self.d0
        state["r"] = once(state["r"] * self._kept() + weight * _sum(self._products))
        norm = _sum(self._norms)
        estimate = state["r"] * self.d_coef / mx.where(norm > 0, norm, 1.0)
        state["d"] = once(mx.maximum(state["d"], estimate))

    def _weight_of_norm(self) -> mx.array:
        """The newest gradient's weight in ``s``. Only its ratio to that of the newest product in ``r`` counts, so both
        lack the factor that makes means of sums, and are relative to the first ``d``, whose square is tiny."""
        d = self.state["d"]
        return (d if self.safeguard_warmup else self.learning_rate) * d / self.d0 / self.d0

    def _kept(self) -> Any:
        """The root of the second beta."""
        beta2 = self.betas[1]
        return math.sqrt(beta2) if isinstance(beta2, int | float) else mx.exp(beta2.log() * 0.5)


def _sum(scalars: list[mx.array]) -> mx.array:
    return mx.sum(mx.stack(scalars))
