"""Mixtures of experts in checkpoints that keep each expert's matrices apart."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from lmxexp.export.family import Tie, is_exactly, require
from lmxexp.model.ffn.experts import GatedExperts
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SoftmaxRouter

LLAMA_NAMES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
NUMBERED_NAMES = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
"""Of an expert's three matrices."""


def silu_mixture(ffn: Any, router: type[SoftmaxRouter], shared: type) -> MixtureOfExperts:
    """The feed-forward, if it is a mixture of SwiGLU experts without biases, with that router and shared expert."""
    moe = is_exactly(ffn, MixtureOfExperts, "the feed-forward")
    experts = is_exactly(moe.experts, GatedExperts, "the experts")
    require(experts.activation_name == "silu", f"the experts' activation is {experts.activation_name}")
    require(moe.weigh == "output", "routing weights multiply what experts get")
    require("bias" not in is_exactly(moe.router, router, "the router").gate, "the router has a bias")
    one = is_exactly(moe.shared_expert, shared, "the shared expert")
    require(one.activation_name == "silu", f"the shared expert's activation is {one.activation_name}")
    layers = [experts.gate_proj, experts.up_proj, experts.down_proj, one.gate_proj, one.up_proj, one.down_proj]
    require(not any("bias" in layer for layer in layers), "experts have biases")
    return moe


def expert_ties(ours: str, theirs: str, n_experts: int, names: Mapping[str, str]) -> list[Tie]:
    """Of the experts of one layer: ours are one array for all, theirs one array each.

    Args:
        ours: path of the experts, such as ``layers.0.mlp.experts``.
        theirs: what stands before the expert's number, such as ``model.layers.0.mlp.experts``.
        names: theirs of an expert's matrices, by ours.
    """

    def apart(stacked: mx.array) -> tuple[mx.array, ...]:
        return tuple(stacked[e] for e in range(n_experts))

    def together(*single: mx.array) -> tuple[mx.array, ...]:
        return (mx.stack(list(single)),)

    return [
        Tie(
            (f"{ours}.{mine}.weight",), tuple(f"{theirs}.{e}.{their}.weight" for e in range(n_experts)), apart, together
        )
        for mine, their in names.items()
    ]
