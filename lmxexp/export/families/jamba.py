"""Jamba: Mamba layers with norms inside, few of attention without positions, experts in some layers."""

from typing import Any

from lmxexp.export import parts
from lmxexp.export.experts import LLAMA_NAMES, expert_ties
from lmxexp.export.families.mixtral import mixture_overrides, mixture_sizes, plain_mixture
from lmxexp.export.family import Tie, all_equal, is_exactly, require, standard_name
from lmxexp.export.state_space import knobs, mamba1_name, mamba1_sizes, renamed_with_convolutions
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.attention.mamba1 import Mamba1
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "JambaForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attn_layer_period": 8,
    "attn_layer_offset": 4,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "router_aux_loss_coef": 0.001,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_dt_rank": "auto",
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "tie_word_embeddings": False,
}
PATH = "model.layers.{}.feed_forward.experts"


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    ssms = [layer.self_attn for layer in layers if type(layer.self_attn) is Mamba1]
    require(ssms, "there is no Mamba layer")
    mixers = [
        parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers if type(layer.self_attn) is not Mamba1
    ]
    require(all(m.position is None for m in mixers), "attention has positions")
    require(not any("bias" in p for m in mixers for p in (*parts.qkv(m), m.o_proj)), "attention has biases")
    require(all(m.dt_layernorm is not None for m in ssms), "step sizes are not normalised")
    inner_norms = [n for m in ssms for n in (m.dt_layernorm, m.b_layernorm, m.c_layernorm)]
    sizes = mamba1_sizes(ssms)
    return {
        **parts.base_config(model),
        **(parts.attention_sizes(mixers) if mixers else {"num_attention_heads": 1, "num_key_value_heads": 1}),
        **_feed_forwards([layer.mlp for layer in layers]),
        **_period("attn_layer", [type(layer.self_attn) is GroupedQueryAttention for layer in layers]),
        **_period("expert_layer", [type(layer.mlp) is MixtureOfExperts for layer in layers]),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers), *inner_norms),
        "mamba_d_state": sizes["d_state"],
        "mamba_d_conv": sizes["conv_width"],
        "mamba_expand": sizes["expand"],
        "mamba_dt_rank": sizes["dt_rank"],
        "mamba_chunk_size": sizes["chunk"],  # nobody else's: rounding depends on it
        "mamba_conv_bias": sizes["conv_bias"],
        "mamba_proj_bias": sizes["bias"],
    }


def _feed_forwards(ffns: list[Any]) -> dict[str, Any]:
    """Dense layers and experts, which are of one width."""
    moes = [plain_mixture(ffn) for ffn in ffns if type(ffn) is MixtureOfExperts]
    dense = [is_exactly(ffn, GatedLinearUnit, "the feed-forward") for ffn in ffns if type(ffn) is not MixtureOfExperts]
    require(all(f.activation_name == "silu" for f in dense), "the activation of a dense layer is not silu")
    require(not any(parts.has_bias(*parts.three(f)) for f in dense), "a dense layer has biases")
    require(not any(moe.router.norm_topk_prob for moe in moes), "weights of experts are normalised")
    widths = [f.d_ff for f in dense] + [moe.d_expert for moe in moes]
    return {
        "hidden_act": "silu",
        **(mixture_sizes(moes) if moes else {"num_experts_per_tok": 1}),
        "num_experts": all_equal((moe.n_experts for moe in moes), "n_experts") if moes else 1,
        "intermediate_size": all_equal(widths, "the width of dense layers and experts"),
    }


def _period(key: str, where: list[bool]) -> dict[str, int]:
    """Which layers are of a kind, as the shortest period and the place in it."""
    n = len(where)
    for period in range(1, n + 1):
        for offset in range(period):
            if where == [i % period == offset for i in range(n)]:
                return {f"{key}_period": period, f"{key}_offset": offset}
    require(not any(where), f"the {key}s do not recur with a period")
    return {f"{key}_period": n + 1, f"{key}_offset": n}


def ties(model: LanguageModel) -> list[Tie]:
    mixtures = {i: layer.mlp for i, layer in enumerate(model.layers) if type(layer.mlp) is MixtureOfExperts}
    apart = [
        tie
        for i, moe in mixtures.items()
        for tie in expert_ties(f"layers.{i}.mlp.experts", PATH.format(i), moe.n_experts, LLAMA_NAMES)
    ]
    ssms = {i for i, layer in enumerate(model.layers) if type(layer.self_attn) is Mamba1}

    def name(ours: str) -> str | None:
        if ".mlp.experts." in ours:
            return None
        if ours == "norm.weight":
            return "model.final_layernorm.weight"
        theirs = standard_name(ours).replace(".mlp.router.gate.", ".mlp.router.").replace(".mlp.", ".feed_forward.")
        theirs = theirs.replace(".post_attention_layernorm.", ".pre_ff_layernorm.")
        is_ssm = ours.startswith("layers.") and int(ours.split(".")[1]) in ssms
        return mamba1_name(theirs.replace(".self_attn.", ".mamba.")) if is_ssm else theirs

    return apart + renamed_with_convolutions(model, name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    rank = config["mamba_dt_rank"]
    return [
        *parts.size_overrides("jamba", config),
        parts.pattern_override(_block(config, i) for i in range(config["num_hidden_layers"])),
        *mixture_overrides(config, config["num_experts"], config["intermediate_size"]),
        *knobs(
            "ssm",
            d_state=config["mamba_d_state"],
            conv_width=config["mamba_d_conv"],
            expand=config["mamba_expand"],
            dt_rank="null" if rank == "auto" else rank,
            chunk=config["mamba_chunk_size"],
            conv_bias=config["mamba_conv_bias"],
            bias=config["mamba_proj_bias"],
        ),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.ssm.norm.eps={config['rms_norm_eps']}",
        parts.embedding_override(config),
    ]


def _block(config: dict[str, Any], i: int) -> str:
    """The preset's name of a layer like the one of that number."""
    attends = i % config["attn_layer_period"] == config["attn_layer_offset"]
    has_experts = i % config["expert_layer_period"] == config["expert_layer_offset"] and config["num_experts"] > 1
    return ("layer" if attends else "ssm") + ("_moe" if has_experts else "")
