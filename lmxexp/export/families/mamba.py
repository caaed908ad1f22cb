"""Mamba: selective state spaces, one norm a layer, no feed-forward."""

from typing import Any

from lmxexp.export import parts
from lmxexp.export.family import Tie, is_exactly, require
from lmxexp.export.state_space import (
    backbone_name,
    knobs,
    mamba1_name,
    mamba1_sizes,
    mixer_alone,
    renamed_with_convolutions,
)
from lmxexp.model.attention.mamba1 import Mamba1
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "MambaForCausalLM"
DEFAULTS = {
    "state_size": 16,
    "expand": 2,
    "conv_kernel": 4,
    "time_step_rank": "auto",
    "chunk_size": 256,
    "use_bias": False,
    "use_conv_bias": True,
    "hidden_act": "silu",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = [is_exactly(layer, PreNorm, "the block") for layer in model.layers]
    mixers = [mixer_alone(layer, Mamba1) for layer in layers]
    require(all(m.dt_layernorm is None for m in mixers), "step sizes are normalised")
    sizes = mamba1_sizes(mixers)
    return {
        **parts.base_config(model),
        "intermediate_size": sizes["expand"] * model.d_model,
        "state_size": sizes["d_state"],
        "expand": sizes["expand"],
        "conv_kernel": sizes["conv_width"],
        "time_step_rank": sizes["dt_rank"],
        "chunk_size": sizes["chunk"],  # nobody else's: rounding depends on it
        "use_bias": sizes["bias"],
        "use_conv_bias": sizes["conv_bias"],
        "hidden_act": "silu",
        "layer_norm_epsilon": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "residual_in_fp32": False,
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed_with_convolutions(model, lambda ours: mamba1_name(backbone_name(ours)))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    rank = config["time_step_rank"]
    return [
        "model=mamba",
        f"model.d_model={config['hidden_size']}",
        f"model.n_layers={config['num_hidden_layers']}",
        *knobs(
            "attention",
            expand=config["expand"],
            d_state=config["state_size"],
            conv_width=config["conv_kernel"],
            dt_rank="null" if rank == "auto" else rank,
            chunk=config["chunk_size"],
            bias=config["use_bias"],
            conv_bias=config["use_conv_bias"],
        ),
        f"model.norm.eps={config['layer_norm_epsilon']}",
        parts.embedding_override(config),
    ]
