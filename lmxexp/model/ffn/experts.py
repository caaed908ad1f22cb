"""Experts: many feed-forwards whose weights are stacked; what fills the slot ``experts`` of a mixture."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError
from lmxexp.model.ffn.glu import gated_width
from lmxexp.model.recompute import cheap, weighed
from lmxexp.ops.activation import Activation
from lmxexp.ops.activation import activation as activation_by_name
from lmxexp.ops.embed import embed
from lmxexp.ops.exp import sigmoid
from lmxexp.ops.experts import grouped_matmul
from lmxexp.ops.gated import gated


class ExpertLinear(nn.Module):
    """One linear layer per expert, each row through that of its own.

    Args:
        n_experts: E.
        n_in: width of the rows.
        n_out: width of the results.
        bias: whether the layers have biases.

    Shapes:
        rows ``(N, n_in)`` and experts ``(N,)``, ascending, to ``(N, n_out)``; weight ``(E, n_out, n_in)``, bias
        ``(E, n_out)``.
    """

    def __init__(self, n_experts: int, n_in: int, n_out: int, bias: bool = False):
        super().__init__()
        bound = n_in**-0.5  # as mlx.nn.Linear
        self.weight = mx.random.uniform(-bound, bound, (n_experts, n_out, n_in))
        if bias:
            self.bias = mx.zeros((n_experts, n_out))

    def __call__(self, rows: mx.array, experts: mx.array) -> mx.array:
        return weighed(ExpertLinear._product, self, rows, experts)

    def _product(self, rows: mx.array, experts: mx.array) -> mx.array:
        y = grouped_matmul(rows, self.weight, experts)
        return y + embed(self.bias, experts) if "bias" in self else y


class GatedExperts(nn.Module):
    """``down(activation(gate(x)) * up(x))`` in each expert: SwiGLU with silu.

    Args:
        d_model: width of input and output.
        n_experts: E.
        n_active: experts that each token passes through, shared ones included.
        d_expert: hidden width of one expert; None: ``d_ff / n_active`` to the nearest multiple of 8, so that a token
            meets as many weights as in the dense layer.
        d_ff: hidden width of that dense layer; None: ``8/3 d_model`` to the nearest multiple of 16.
        activation: of the gate, see `lmxexp.ops.activation`.
        bias: whether the layers have biases.

    Shapes:
        rows ``(N, D)`` and experts ``(N,)``, ascending, to ``(N, D)``.

    Cost:
        ``3 n_experts d_model d_expert`` weights.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        n_active: int = 1,
        d_expert: int | None = None,
        d_ff: int | None = None,
        activation: Activation = "silu",
        bias: bool = False,
    ):
        super().__init__()
        self.d_expert = _width(d_expert, d_ff or gated_width(d_model), n_active)
        self.activation_name = activation
        activation_by_name(activation)  # or it would be refused in the first step only
        self.gate_proj = ExpertLinear(n_experts, d_model, self.d_expert, bias)
        self.up_proj = ExpertLinear(n_experts, d_model, self.d_expert, bias)
        self.down_proj = ExpertLinear(n_experts, self.d_expert, d_model, bias)

    def __call__(self, rows: mx.array, experts: mx.array) -> mx.array:
        gate, up = self.gate_proj(rows, experts), self.up_proj(rows, experts)
        return self.down_proj(cheap(partial(gated, self.activation_name), gate, up), experts)


class ClampedExperts(nn.Module):
    """``down((up(x) + 1) * g * sigmoid(alpha g))`` in each expert, ``g = gate(x)``, with gate and up clamped.

    Args:
        d_model: width of input and output.
        n_experts: E.
        n_active: experts that each token passes through, shared ones included.
        d_expert: hidden width of one expert; None: ``d_ff / n_active`` to the nearest multiple of 8, so that a token
            meets as many weights as in the dense layer.
        d_ff: hidden width of that dense layer; None: ``8/3 d_model`` to the nearest multiple of 16.
        alpha: steepness of the sigmoid.
        limit: gate is at most this, up at most this far from zero.
        bias: whether the layers have biases.

    Shapes:
        rows ``(N, D)`` and experts ``(N,)``, ascending, to ``(N, D)``.

    Cost:
        ``3 n_experts d_model d_expert`` weights.

    Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2, and the reference code released with it.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        n_active: int = 1,
        d_expert: int | None = None,
        d_ff: int | None = None,
        alpha: float = 1.702,
        limit: float = 7.0,
        bias: bool = True,
    ):
        super().__init__()
        if limit <= 0:
            raise ConfigError(f"ffn.experts.limit={limit} must be positive")
        self.d_expert = _width(d_expert, d_ff or gated_width(d_model), n_active)
        self.alpha, self.limit = alpha, limit
        self.gate_proj = ExpertLinear(n_experts, d_model, self.d_expert, bias)
        self.up_proj = ExpertLinear(n_experts, d_model, self.d_expert, bias)
        self.down_proj = ExpertLinear(n_experts, self.d_expert, d_model, bias)

    def __call__(self, rows: mx.array, experts: mx.array) -> mx.array:
        gate, up = self.gate_proj(rows, experts), self.up_proj(rows, experts)
        return self.down_proj(cheap(self._clamped, gate, up), experts)

    def _clamped(self, gate: mx.array, up: mx.array) -> mx.array:
        gate = mx.minimum(gate, self.limit)
        up = mx.clip(up, -self.limit, self.limit)
        return (up + 1.0) * gate * sigmoid(self.alpha * gate)


class PlainExperts(nn.Module):
    """``down(activation(up(x)))`` in each expert.

    Args:
        d_model: width of input and output.
        n_experts: E.
        n_active: experts that each token passes through, shared ones included.
        d_expert: hidden width of one expert; None: ``d_ff / n_active`` to the nearest multiple of 8, so that a token
            meets as many weights as in the dense layer.
        d_ff: hidden width of that dense layer; None: ``4 d_model``.
        activation: see `lmxexp.ops.activation`.
        bias: whether the layers have biases.

    Shapes:
        rows ``(N, D)`` and experts ``(N,)``, ascending, to ``(N, D)``.

    Cost:
        ``2 n_experts d_model d_expert`` weights.

    Source: Fedus et al. 2021, "Switch Transformers", section 2; with relu2 So et al. 2021, "Primer".
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        n_active: int = 1,
        d_expert: int | None = None,
        d_ff: int | None = None,
        activation: Activation = "relu2",
        bias: bool = False,
    ):
        super().__init__()
        self.d_expert = _width(d_expert, d_ff or 4 * d_model, n_active)
        self.activation_name = activation
        self.activation = activation_by_name(activation)
        self.up_proj = ExpertLinear(n_experts, d_model, self.d_expert, bias)
        self.down_proj = ExpertLinear(n_experts, self.d_expert, d_model, bias)

    def __call__(self, rows: mx.array, experts: mx.array) -> mx.array:
        return self.down_proj(cheap(self.activation, self.up_proj(rows, experts)), experts)


def _width(d_expert: int | None, d_ff: int, n_active: int) -> int:
    return d_expert or max(8, round(d_ff / n_active / 8) * 8)
