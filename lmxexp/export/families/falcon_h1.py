"""Falcon-H1: attention and Mamba-2 side by side in every layer."""

import math
from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, is_exactly, require, standard_name
from lmxexp.export.state_space import gated_norm_eps, knobs, mamba2_sizes, read_limit, renamed_with_convolutions
from lmxexp.model.attention.hybrid_head import HybridHead
from lmxexp.model.attention.mamba2 import Mamba2
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "FalconH1ForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "mamba_d_ssm": 1024,
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 256,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "mamba_norm_before_gate": True,
    "mamba_rms_norm": False,
    "projectors_bias": False,
    "time_step_limit": [0.0, math.inf],
    "tie_word_embeddings": False,
}
# Fixed factors on what passes from part to part.
ONES = {
    "lm_head_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "mlp_multipliers": [1.0, 1.0],
    "key_multiplier": 1.0,
    "attention_in_multiplier": 1.0,
    "ssm_multipliers": [1.0] * 5,
    "ssm_in_multiplier": 1.0,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    hybrids = [is_exactly(layer.self_attn, HybridHead, "a mixer") for layer in layers]
    mixers = [parts.plain_attention(h.first, qk_norm=False) for h in hybrids]
    ssms = [is_exactly(h.second, Mamba2, "the second mixer") for h in hybrids]
    ffns = parts.gated_ffns(layers)
    sizes = mamba2_sizes(ssms)
    eps = parts.rms_eps(model.norm, *parts.block_norms(layers))
    normed = all_equal((m.norm is not None for m in ssms), "whether there is a norm behind the gate")
    if normed:
        require(gated_norm_eps(ssms) == eps, "eps of the norms behind gates is another")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        "rms_norm_eps": eps,
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
        "mlp_bias": parts.has_bias(*(p for f in ffns for p in parts.three(f))),
        "mamba_d_ssm": sizes["d_inner"],
        "mamba_n_heads": sizes["n_heads"],
        "mamba_d_head": sizes["head_dim"],
        "mamba_n_groups": sizes["n_groups"],
        "mamba_d_state": sizes["d_state"],
        "mamba_d_conv": sizes["conv_width"],
        "mamba_expand": max(1, round(sizes["expand"])),  # read by nothing: mamba_d_ssm says it
        "mamba_chunk_size": sizes["chunk"],
        "mamba_conv_bias": sizes["conv_bias"],
        "mamba_proj_bias": sizes["bias"],
        "projectors_bias": sizes["bias"],
        "mamba_rms_norm": normed,
        "mamba_norm_before_gate": False,
        "time_step_limit": list(sizes["dt_limit"]),
        "attention_out_multiplier": all_equal((h.first_scale for h in hybrids), "first_scale"),
        "ssm_out_multiplier": all_equal((h.second_scale for h in hybrids), "second_scale"),
        **ONES,
    }


def ties(model: LanguageModel) -> list[Tie]:
    def name(ours: str) -> str:
        if ours == "norm.weight":
            return "model.final_layernorm.weight"
        theirs = (
            standard_name(ours).replace(".self_attn.first.", ".self_attn.").replace(".self_attn.second.", ".mamba.")
        )
        return theirs.replace(".mlp.", ".feed_forward.").replace(".post_attention_layernorm.", ".pre_ff_layernorm.")

    return renamed_with_convolutions(model, name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
    parts.require_values(config, hidden_act="silu", **ONES)
    require(config["projectors_bias"] == config["mamba_proj_bias"], "projectors_bias is not mamba_proj_bias")
    require(not config["mamba_rms_norm"] or not config["mamba_norm_before_gate"], "norms stand before the gates")
    width = config["mamba_d_ssm"]
    return [
        *parts.size_overrides("falcon_h1", config),
        *(
            ["attention@model.ssm=mamba2", f"model.ssm.norm.eps={config['rms_norm_eps']}"]
            if config["mamba_rms_norm"]
            else []
        ),
        *knobs(
            "ssm",
            n_heads=config["mamba_n_heads"],
            expand=width / config["hidden_size"],
            d_state=config["mamba_d_state"],
            n_groups=config["mamba_n_groups"],
            conv_width=config["mamba_d_conv"],
            chunk=config["mamba_chunk_size"],
            dt_limit=read_limit(config["time_step_limit"]),
            bias=config["mamba_proj_bias"],
            conv_bias=config["mamba_conv_bias"],
        ),
        *knobs(
            "hybrid",
            first_scale=config.get("attention_out_multiplier", 1.0),
            second_scale=config.get("ssm_out_multiplier", 1.0),
        ),
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        f"model.ffn.bias={config['mlp_bias']}",
        parts.embedding_override(config),
    ]
