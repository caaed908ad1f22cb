"""Mixture of experts."""

from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, ConfigError, Factory
from lmxexp.model.ffn.experts import ExpertLinear
from lmxexp.model.recompute import cheap
from lmxexp.ops.experts import bring_back, copy_to_experts, sort_by_expert
from lmxexp.ops.route import balance_loss, expert_load, router_z_loss


class MixtureOfExperts(nn.Module):
    """Many feed-forwards of which each token passes through few, chosen by a router, and perhaps through a shared one.

    Copies of the tokens are sorted by expert and multiplied in groups, so there is no capacity: no token is dropped,
    and each gets what it would get alone.

    Beside its output it returns ``expert_load`` ``(E,)``: the copies that each expert got, in units of an even share (1
    everywhere: perfectly balanced); and, where their weights are not zero, ``balance_loss`` and ``router_z_loss``, both
    weighted.

    Args:
        d_model: width of input and output.
        n_experts: E, routed ones.
        top_k: routed experts of each token.
        router: factory of what chooses, see `lmxexp.model.ffn.router`.
        experts: factory of the experts, see `lmxexp.model.ffn.experts`.
        shared: factory of a feed-forward for every token, given ``d_model`` and ``d_ff``; needs n_shared.
        n_shared: width of the shared one in units of an expert's; 0: there is none.
        d_expert: hidden width of one expert; None: ``d_ff / (top_k + n_shared)`` to the nearest multiple of 8, so that
            a token meets as many weights as in the dense layer.
        d_ff: hidden width of that dense layer; None: its own default.
        weigh: whether the routing weights multiply what the experts give or what they get.
        balance_weight: of the loss that evens the load, see `lmxexp.ops.route.balance_loss`; summed over layers.
        z_weight: of the loss that keeps the router's logits small, see `lmxexp.ops.route.router_z_loss`; likewise.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        ``2 top_k`` FLOPs for each weight of an expert, ``2`` for each of the router and the shared expert.

    Raises:
        ConfigError: counts that do not fit, a shared expert of no width, negative weights of losses.

    Source: Shazeer et al. 2017, "Outrageously Large Neural Networks", eq. 1; shared experts: Dai et al. 2024,
        "DeepSeekMoE", eq. 9; grouped products in place of a capacity: Gale et al. 2022, "MegaBlocks"; weights on the
        input: Meta 2025, "Llama 4". Load and losses are those of one batch on one device, and of one part of it where
        it is split; the load that moves a router's bias is the mean over the parts.
    """

    def __init__(
        self,
        d_model: int,
        n_experts: int,
        top_k: int,
        router: Factory,
        experts: Factory,
        shared: Factory | None = None,
        n_shared: int = 0,
        d_expert: int | None = None,
        d_ff: int | None = None,
        weigh: Literal["output", "input"] = "output",
        balance_weight: float = 0.0,
        z_weight: float = 0.0,
    ):
        super().__init__()
        if (shared is None) != (n_shared == 0) or n_shared < 0:
            raise ConfigError(
                f"ffn.n_shared={n_shared} with {'no' if shared is None else 'an'} ffn.shared: "
                "set both, or 0 and null for no shared expert"
            )
        if weigh not in ("output", "input"):
            raise ConfigError(f"ffn.weigh={weigh} must be output or input")
        for key, value in {"balance_weight": balance_weight, "z_weight": z_weight}.items():
            if value < 0:
                raise ConfigError(f"ffn.{key}={value} must not be negative: 0 turns the loss off")
        self.n_experts, self.top_k, self.n_shared, self.weigh = n_experts, top_k, n_shared, weigh
        self.balance_weight, self.z_weight = balance_weight, z_weight
        self.router = router(d_model=d_model, n_experts=n_experts, top_k=top_k)
        self.experts = experts(
            d_model=d_model, n_experts=n_experts, n_active=top_k + n_shared, d_expert=d_expert, d_ff=d_ff
        )
        self.d_expert = self.experts.d_expert
        self.shared_expert = shared(d_model=d_model, d_ff=n_shared * self.d_expert) if shared else None

    def __call__(self, x: mx.array) -> tuple[mx.array, Aux]:
        tokens = cheap(lambda x: x.reshape(-1, x.shape[-1]), x)
        routing = self.router(tokens)
        y = self._routed(tokens, routing.indices, routing.weights.astype(x.dtype)).reshape(x.shape)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)[0]
        load = expert_load(routing.indices, self.n_experts)
        aux = {"expert_load": load}
        if self.balance_weight:
            aux["balance_loss"] = self.balance_weight * balance_loss(load, routing.probs)
        if self.z_weight:
            aux["router_z_loss"] = self.z_weight * router_z_loss(routing.logits)
        return y, aux

    def _routed(self, tokens: mx.array, indices: mx.array, weights: mx.array) -> mx.array:
        """``(T, D)``, experts ``(T, k)`` and weights ``(T, k)`` to ``(T, D)``."""
        order = sort_by_expert(indices)
        copied = lambda tokens: copy_to_experts(tokens, order)
        if self.weigh == "input":
            rows = cheap(lambda tokens, weights: copied(tokens) * copied(weights.reshape(-1, 1)), tokens, weights)
        else:
            rows = cheap(copied, tokens)
        y = bring_back(self.experts(rows, order.experts), order).reshape(*indices.shape, -1)
        if self.weigh == "output":
            y = y * weights[..., None]
        return y.sum(axis=1)

    def weight_flops(self) -> int:
        layers = [m for m in self.experts.modules() if isinstance(m, ExpertLinear)]
        return 2 * self.top_k * sum(layer.weight.size for layer in layers) // self.n_experts
