"""Routers: what fills the slot ``router`` of a mixture of experts."""

from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, ConfigError
from lmxexp.ops.exp import sigmoid
from lmxexp.ops.route import limit_groups, top_k
from lmxexp.ops.sort_rows import sort_rows


class Routing(NamedTuple):
    """Where each of T tokens goes."""

    indices: mx.array
    """``(T, k)``: its experts."""
    weights: mx.array
    """``(T, k)`` fp32: how much each counts."""
    probs: mx.array
    """``(T, E)`` fp32, rows sum to 1: what the balance loss moves."""
    logits: mx.array
    """``(T, E)`` fp32."""


class SoftmaxRouter(nn.Module):
    """The ``top_k`` experts of largest softmax probability, weighted by it.

    With ``norm_topk_prob`` the weights of a token sum to 1, as by a softmax over the chosen logits alone.

    Args:
        d_model: width of the tokens.
        n_experts: E.
        top_k: experts of each token.
        norm_topk_prob: whether the chosen probabilities are divided by their sum.
        scale: factor on the weights.
        n_groups: groups of experts, of equal size; a token chooses groups first, by their best expert. 1: no groups.
        topk_groups: groups of each token.
        bias: whether the logits have a bias.

    Shapes:
        ``(T, D)`` to a `Routing`; fp32 throughout, because a rounded score is another choice.

    Cost:
        ``n_experts d_model`` weights.

    Raises:
        ConfigError: counts that do not fit.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 3 to 5, without noise; with norm_topk_prob
        Jiang et al. 2024, "Mixtral of Experts", section 2.1; groups: DeepSeek-AI 2024, "DeepSeek-V2", section 2.2.2.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        norm_topk_prob: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        topk_groups: int = 1,
        bias: bool = False,
    ):
        super().__init__()
        _check(n_experts, top_k, n_groups, topk_groups)
        self.n_experts, self.top_k = n_experts, top_k
        self.norm_topk_prob, self.scale = norm_topk_prob, scale
        self.n_groups, self.topk_groups = n_groups, topk_groups
        self.gate = nn.Linear(d_model, n_experts, bias=bias)

    def __call__(self, x: mx.array) -> Routing:
        logits = _logits(self.gate, x)
        probs = mx.softmax(logits, axis=-1)
        indices = self._choose(probs)
        return Routing(indices, self._weigh(probs, indices), probs, logits)

    def _choose(self, scores: mx.array) -> mx.array:
        if self.n_groups > 1:
            scores = limit_groups(scores, self.n_groups, self.topk_groups, self._group_score)
        return top_k(scores, self.top_k)

    def _group_score(self, scores: mx.array) -> mx.array:
        """``(T, G, E/G) -> (T, G)``: what a group is chosen by."""
        return scores.max(axis=-1)

    def _weigh(self, scores: mx.array, indices: mx.array) -> mx.array:
        weights = mx.take_along_axis(scores, indices, axis=-1)
        if self.norm_topk_prob:
            weights = weights / mx.maximum(weights.sum(axis=-1, keepdims=True), 1e-20)
        return weights * self.scale


class SigmoidRouter(SoftmaxRouter):
    """The ``top_k`` experts of largest sigmoid score, each judged by itself.

    With a ``bias_rate`` the load is balanced without a loss: a bias ``e_score_correction_bias``, which takes part in
    the choice and not in the weights, rises for experts with less than their share and falls for those with more. No
    gradient moves it. In pure bf16 it stops growing where ``bias_rate`` is below its rounding (0.001 at 0.5).

    Args:
        d_model: width of the tokens.
        n_experts: E.
        top_k: experts of each token.
        norm_topk_prob: whether the chosen scores are divided by their sum.
        scale: factor on the weights.
        n_groups: groups of experts, of equal size; a token chooses groups first, by the sum of their two best scores.
            1: no groups.
        topk_groups: groups of each token.
        bias: whether the logits have a bias.
        bias_rate: how much the correction moves at each update; None: there is none.

    Shapes:
        ``(T, D)`` to a `Routing`, fp32 throughout; its ``probs`` are the scores divided by their sum.

    Cost:
        ``n_experts d_model`` weights.

    Raises:
        ConfigError: counts that do not fit, a bias_rate that is not positive.

    Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", eq. 12 to 16 and 18; Wang et al. 2024,
        "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", algorithm 1. Without normalisation, groups
        and correction: Meta 2025, "Llama 4".
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        norm_topk_prob: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        topk_groups: int = 1,
        bias: bool = False,
        bias_rate: float | None = None,
    ):
        super().__init__(d_model, n_experts, top_k, norm_topk_prob, scale, n_groups, topk_groups, bias)
        if n_groups > 1 and n_experts < 2 * n_groups:
            raise ConfigError(
                f"ffn.router.n_groups={n_groups} leaves less than two of n_experts={n_experts} to a group"
            )
        self.bias_rate = bias_rate
        if bias_rate is not None:
            if bias_rate <= 0:
                raise ConfigError(f"ffn.router.bias_rate={bias_rate} must be positive: null leaves the bias out")
            self.e_score_correction_bias = mx.zeros((n_experts,))
            self.freeze(keys=["e_score_correction_bias"], recurse=False)

    def __call__(self, x: mx.array) -> Routing:
        logits = _logits(self.gate, x)
        scores = sigmoid(logits)
        indices = self._choose(scores if self.bias_rate is None else scores + self.e_score_correction_bias)
        return Routing(
            indices, self._weigh(scores, indices), scores / (scores.sum(axis=-1, keepdims=True) + 1e-20), logits
        )

    def _group_score(self, scores: mx.array) -> mx.array:
        return sort_rows(scores)[..., -2:].sum(axis=-1)

    def after_update(self, aux: Aux) -> None:
        if self.bias_rate is not None:
            correction = self.e_score_correction_bias
            moved = correction.astype(mx.float32) + self.bias_rate * mx.sign(1.0 - aux["expert_load"])
            self.e_score_correction_bias = moved.astype(correction.dtype)


def _logits(gate: nn.Linear, x: mx.array) -> mx.array:
    logits = x.astype(mx.float32) @ gate.weight.astype(mx.float32).T
    return logits + gate.bias.astype(mx.float32) if "bias" in gate else logits


def _check(n_experts: int, top_k: int, n_groups: int, topk_groups: int) -> None:
    if not 1 <= top_k <= n_experts:
        raise ConfigError(f"ffn.top_k={top_k} must be between 1 and ffn.n_experts={n_experts}")
    if n_groups < 1 or n_experts % n_groups:
        raise ConfigError(f"ffn.n_experts={n_experts} must be a multiple of ffn.router.n_groups={n_groups}")
    if not 1 <= topk_groups <= n_groups:
        raise ConfigError(f"ffn.router.topk_groups={topk_groups} must be between 1 and ffn.router.n_groups={n_groups}")
    if top_k > topk_groups * (n_experts // n_groups):
        raise ConfigError(
            f"ffn.top_k={top_k} is more than the {n_experts // n_groups} experts of each of "
            f"ffn.router.topk_groups={topk_groups} groups"
        )
