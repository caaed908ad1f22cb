"""Mixtral: a mistral with experts."""

from collections.abc import Callable, Mapping
from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.experts import NUMBERED_NAMES, expert_ties
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.experts import GatedExperts
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SoftmaxRouter
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "MixtralForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "rope_theta": 1e6,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=False) for layer in layers]
    require(not parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))), "attention has biases")
    moes = [plain_mixture(layer.mlp) for layer in layers]
    require(all(moe.router.norm_topk_prob for moe in moes), "weights of experts are not normalised")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **mixture_sizes(moes),
        "intermediate_size": all_equal((moe.d_expert for moe in moes), "d_expert"),
        "num_local_experts": all_equal((moe.n_experts for moe in moes), "n_experts"),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "sliding_window": all_equal(parts.windows(mixers), "the window"),
    }


def ties(model: LanguageModel) -> list[Tie]:
    def name(ours: str) -> str:
        return standard_name(ours).replace(".mlp.router.", ".block_sparse_moe.")

    return mixture_ties(model, name, "block_sparse_moe.experts", NUMBERED_NAMES)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("mixtral", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.window_overrides(config["sliding_window"]),
        *mixture_overrides(config, config["num_local_experts"], config["intermediate_size"]),
        f"model.norm.eps={config['rms_norm_eps']}",
        parts.embedding_override(config),
    ]


# --- what other families have too -------------------------------------------------------------------------------------


def plain_mixture(ffn: Any) -> MixtureOfExperts:
    """The feed-forward, if it is SwiGLU experts behind a softmax and nothing beside, without biases."""
    moe = is_exactly(ffn, MixtureOfExperts, "the feed-forward")
    experts = is_exactly(moe.experts, GatedExperts, "the experts")
    router = is_exactly(moe.router, SoftmaxRouter, "the router")
    require(not parts.has_bias(*parts.three(experts), router.gate), "the feed-forward has biases")
    require(experts.activation_name == "silu", f"the experts' activation is {experts.activation_name}")
    require(moe.shared_expert is None, "there is a shared expert")
    plainly_routed(moe)
    return moe


def plainly_routed(moe: MixtureOfExperts) -> None:
    """Refuse weights that multiply inputs, groups of experts and scaled weights."""
    router = moe.router
    require(moe.weigh == "output", "routing weights multiply what experts get")
    require(router.n_groups == 1, f"experts are chosen in n_groups={router.n_groups}")
    require(router.scale == 1.0, f"routing weights are scaled by {router.scale:g}")


def mixture_sizes(moes: list[MixtureOfExperts]) -> dict[str, Any]:
    """What these families say alike.

    ``router_aux_loss_coef`` is our ``balance_weight`` as it stands. Their code, which computes the loss on demand only,
    has ``top_k`` times its value and takes one over all layers instead of the sum.
    """
    return {
        "hidden_act": "silu",
        "num_experts_per_tok": all_equal((moe.top_k for moe in moes), "top_k"),
        "router_aux_loss_coef": all_equal((moe.balance_weight for moe in moes), "balance_weight"),
    }


def mixture_overrides(config: dict[str, Any], n_experts: int, d_expert: int) -> list[str]:
    """The knobs of the feed-forward that these families have alike."""
    knobs = {
        "n_experts": n_experts,
        "top_k": config["num_experts_per_tok"],
        "d_expert": d_expert,
        "balance_weight": config["router_aux_loss_coef"],
    }
    return [f"model.ffn.{key}={value}" for key, value in knobs.items()]


def mixture_ties(model: LanguageModel, name: Callable[[str], str], where: str, names: Mapping[str, str]) -> list[Tie]:
    """Ties of a model in which all feed-forwards are mixtures, each expert's matrices apart.

    Args:
        name: theirs of the other parameters.
        where: the experts in a layer of theirs.
        names: see `expert_ties`.
    """
    apart = [
        tie
        for i, layer in enumerate(model.layers)
        for tie in expert_ties(f"layers.{i}.mlp.experts", f"model.layers.{i}.{where}", layer.mlp.n_experts, names)
    ]
    return apart + renamed(model, lambda ours: None if ".mlp.experts." in ours else name(ours))
