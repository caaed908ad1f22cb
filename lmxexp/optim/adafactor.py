"""Adafactor: Adam's second moment from its row and column means alone."""

from __future__ import annotations

import mlx.core as mx

from lmxexp.interfaces import Schedule
from lmxexp.optim.checks import check_fraction, check_positive
from lmxexp.optim.full_precision import FullPrecision, zeros


class Adafactor(FullPrecision):
    """Divides the gradient by a root mean square that is kept as one number a row and one a column.

    For a matrix of n x m the state is n + m numbers instead of Adam's 2nm. The change is clipped to an RMS of
    ``clip_threshold`` and, with ``scale_parameter``, multiplied by the parameter's own RMS, so that the learning rate
    is relative. Weights of more than two axes are factored over the last two.

    MLX's Adafactor ignores the learning rate unless told otherwise, multiplies the weight decay by the parameter's RMS
    and decays vectors too.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; relative with ``scale_parameter``.
        eps1: Added to the squared gradient.
        eps2: A parameter's RMS counts as at least this, so that a parameter of zeros can move.
        clip_threshold: Largest RMS of a change, before the learning rate.
        decay_rate: The mean square keeps ``1 - step**-decay_rate`` of itself at each step; above 0.
        beta1: How much of a mean of the changes stays at each step; None: no such mean, and no state for it.
        scale_parameter: Multiply the learning rate by the parameter's RMS.
        weight_decay: Decoupled decay of matrices, see `lmxexp.optim.roles`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: N. Shazeer and M. Stern, 2018, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost,
        https://arxiv.org/abs/1804.04235, algorithms 4 and 5. The paper's learning rate ``min(1e-2, step**-0.5)`` is
        replaced by the one that is set and its schedule; the weight decay is PyTorch's.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        eps1: float = 1e-30,
        eps2: float = 1e-3,
        clip_threshold: float = 1.0,
        decay_rate: float = 0.8,
        beta1: float | None = None,
        scale_parameter: bool = True,
        weight_decay: float = 0.0,
    ):
        super().__init__(learning_rate, weight_decay)
        self.eps1 = check_positive("eps1", eps1)
        self.eps2 = check_positive("eps2", eps2)
        self.clip_threshold = check_positive("clip_threshold", clip_threshold)
        self.decay_rate = check_positive("decay_rate", decay_rate)
        self.beta1 = None if beta1 is None else check_fraction("beta1", beta1)
        self.scale_parameter = scale_parameter

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        shape = parameter.shape
        if parameter.ndim >= 2:
            state = {"row": mx.zeros(shape[:-1], mx.float32), "column": mx.zeros(shape[:-2] + shape[-1:], mx.float32)}
        else:
            state = {"v": zeros(parameter)}
        if self.beta1 is not None:
            state["m"] = zeros(parameter)
        return state

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        direction = gradient * self._inverse_root_mean_square(mx.square(gradient) + self.eps1, state)
        direction = direction / mx.maximum(1.0, _rms(direction) / self.clip_threshold)
        rate = self.learning_rate
        if self.scale_parameter:
            rate = rate * mx.maximum(mx.ones(()) * self.eps2, _rms(parameter))
        change = direction * rate
        if self.beta1 is not None:
            change = state["m"] = state["m"] * self.beta1 + change * (1 - self.beta1)
        return change

    def _inverse_root_mean_square(self, squared: mx.array, state: dict[str, mx.array]) -> mx.array:
        # 1 at the first step: there is no bias to correct.
        new = self.once_a_step("new", lambda: self.step.astype(mx.float32) ** -self.decay_rate)
        if squared.ndim < 2:
            state["v"] = state["v"] * (1 - new) + squared * new
            return mx.rsqrt(state["v"])
        state["row"] = row = state["row"] * (1 - new) + squared.mean(axis=-1) * new
        state["column"] = column = state["column"] * (1 - new) + squared.mean(axis=-2) * new
        # The two roots are multiplied, not their squares: those could leave the range of fp32.
        row_root = mx.rsqrt(row / row.mean(axis=-1, keepdims=True))
        return row_root[..., :, None] * mx.rsqrt(column)[..., None, :]


def _rms(x: mx.array) -> mx.array:
    return mx.sqrt(mx.square(x).mean())
