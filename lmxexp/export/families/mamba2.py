"""Mamba-2: state spaces with one decay per head, one norm a layer, no feed-forward."""

import math
from typing import Any

from lmxexp.export import parts
from lmxexp.export.family import Tie, all_equal, is_exactly, require
from lmxexp.export.state_space import (
    backbone_name,
    gated_norm_eps,
    knobs,
    mamba2_sizes,
    mixer_alone,
    read_limit,
    renamed_with_convolutions,
)
from lmxexp.model.attention.mamba2 import Mamba2
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Mamba2ForCausalLM"
DEFAULTS = {
    "num_heads": 128,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 8,
    "expand": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "chunk_size": 256,
    "time_step_limit": [0.0, math.inf],
    "tie_word_embeddings": False,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = [is_exactly(layer, PreNorm, "the block") for layer in model.layers]
    mixers = [mixer_alone(layer, Mamba2) for layer in layers]
    sizes = mamba2_sizes(mixers)
    require(sizes["expand"] == int(sizes["expand"]), f"expand={sizes['expand']} is no whole number")
    eps = [parts.rms_eps(model.norm, *parts.block_norms(layers)), gated_norm_eps(mixers)]
    return {
        **parts.base_config(model),
        "intermediate_size": sizes["d_inner"],
        "num_heads": sizes["n_heads"],
        "head_dim": sizes["head_dim"],
        "state_size": sizes["d_state"],
        "n_groups": sizes["n_groups"],
        "expand": int(sizes["expand"]),
        "conv_kernel": sizes["conv_width"],
        "use_bias": sizes["bias"],
        "use_conv_bias": sizes["conv_bias"],
        "hidden_act": "silu",
        "layer_norm_epsilon": all_equal(eps, "eps of the norms"),
        "chunk_size": sizes["chunk"],
        "time_step_limit": list(sizes["dt_limit"]),
        "time_step_rank": -(-model.d_model // 16),  # read by nothing, but has to be there for mlx-lm
        "residual_in_fp32": False,
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed_with_convolutions(model, backbone_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    width = config["expand"] * config["hidden_size"]
    require(
        config["num_heads"] * config["head_dim"] == width,
        f"num_heads * head_dim is {config['num_heads'] * config['head_dim']}, not expand * hidden_size = {width}",
    )
    return [
        "model=mamba2",
        f"model.d_model={config['hidden_size']}",
        f"model.n_layers={config['num_hidden_layers']}",
        *knobs(
            "attention",
            n_heads=config["num_heads"],
            expand=config["expand"],
            d_state=config["state_size"],
            n_groups=config["n_groups"],
            conv_width=config["conv_kernel"],
            chunk=config["chunk_size"],
            dt_limit=read_limit(config["time_step_limit"]),
            bias=config["use_bias"],
            conv_bias=config["use_conv_bias"],
        ),
        f"model.norm.eps={config['layer_norm_epsilon']}",
        f"model.attention.norm.eps={config['layer_norm_epsilon']}",
        parts.embedding_override(config),
    ]
