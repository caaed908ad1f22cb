"""Nemotron-H: layers of one sublayer: Mamba-2, attention without positions, or a feed-forward with squared relu."""

import math
from typing import Any

from lmxexp.export import parts
from lmxexp.export.family import Tie, all_equal, is_exactly, require
from lmxexp.export.state_space import backbone_name, gated_norm_eps, knobs, mamba2_sizes, renamed_with_convolutions
from lmxexp.model.attention.mamba2 import Mamba2
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.embedding.untied import UntiedEmbedding
from lmxexp.model.ffn.mlp import MLP
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "NemotronHForCausalLM"
DEFAULTS = {
    "layer_norm_epsilon": 1e-5,
    "mlp_hidden_act": "relu2",
    "mamba_hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "mamba_proj_bias": False,
    "use_conv_bias": True,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "ssm_state_size": 128,
    "n_groups": 8,
    "expand": 2,
    "conv_kernel": 4,
    "chunk_size": 128,
    "time_step_min": 0.001,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
# Blocks of the preset by their types, and by their letters in older files.
BLOCKS = {"linear_attention": "ssm", "mamba": "ssm", "M": "ssm", "full_attention": "layer", "attention": "layer"}
BLOCKS |= {"*": "layer", "mlp": "mlp", "-": "mlp"}
# No step is as small; transformers takes the logarithm of the smallest, so that it cannot be zero.
NO_LIMIT = 1e-30


def config(model: LanguageModel) -> dict[str, Any]:
    layers = [is_exactly(layer, PreNorm, "the block") for layer in model.layers]
    require(all((layer.self_attn is None) != (layer.mlp is None) for layer in layers), "a layer has two sublayers")
    mixers = [layer.self_attn for layer in layers if layer.self_attn is not None]
    ssms = [m for m in mixers if type(m) is Mamba2]
    attention = [parts.plain_attention(m, qk_norm=False) for m in mixers if type(m) is not Mamba2]
    mlps = [is_exactly(layer.mlp, MLP, "the feed-forward") for layer in layers if layer.mlp is not None]
    for what, found in {"state space": ssms, "attention": attention, "feed-forward": mlps}.items():
        require(found, f"no layer is {what}")
    is_exactly(model.embedding, UntiedEmbedding, "the embedding")
    require(all(m.position is None for m in attention), "attention has positions")
    require(not parts.has_bias(*(p for m in attention for p in (*parts.qkv(m), m.o_proj))), "attention has biases")
    sizes = mamba2_sizes(ssms)
    smallest, largest = sizes["dt_limit"]
    require(largest == math.inf, f"step sizes are clipped at {largest:g}")
    eps = [parts.rms_eps(model.norm, *parts.block_norms(layers)), gated_norm_eps(ssms)]
    return {
        **parts.base_config(model),
        **parts.attention_sizes(attention),
        **parts.ffn_sizes(mlps, "mlp_hidden_act"),
        "layers_block_type": [_type(layer) for layer in layers],
        "attention_bias": False,  # transformers builds none, whatever stands here
        "mlp_bias": parts.has_bias(*(p for f in mlps for p in (f.up_proj, f.down_proj))),
        "mamba_num_heads": sizes["n_heads"],
        "mamba_head_dim": sizes["head_dim"],
        "mamba_hidden_act": "silu",
        "ssm_state_size": sizes["d_state"],
        "n_groups": sizes["n_groups"],
        "expand": max(1, round(sizes["expand"])),  # read by nothing: the heads say it
        "conv_kernel": sizes["conv_width"],
        "use_bias": sizes["bias"],
        "mamba_proj_bias": sizes["bias"],  # its name in mlx-lm
        "use_conv_bias": sizes["conv_bias"],
        "chunk_size": sizes["chunk"],
        "time_step_min": max(smallest, NO_LIMIT),
        "time_step_limit": [smallest, math.inf],  # what mlx-lm reads
        "layer_norm_epsilon": all_equal(eps, "eps of the norms"),
    }


def _type(layer: Any) -> str:
    if layer.self_attn is None:
        return "mlp"
    return "linear_attention" if type(layer.self_attn) is Mamba2 else "full_attention"


def ties(model: LanguageModel) -> list[Tie]:
    return renamed_with_convolutions(model, backbone_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(
        config, mlp_hidden_act="relu2", mamba_hidden_act="silu", attention_bias=False, tie_word_embeddings=False
    )
    types = list(config.get("layers_block_type") or config.get("hybrid_override_pattern") or [])
    require(types, "neither layers_block_type nor hybrid_override_pattern says what the layers are")
    unknown = sorted(set(types) - set(BLOCKS))
    require(not unknown, f"layers_block_type has {', '.join(unknown)}")
    heads, width = config["mamba_num_heads"], config["mamba_num_heads"] * config["mamba_head_dim"]
    smallest = config["time_step_min"]
    return [
        *parts.size_overrides("nemotron_h", {**config, "num_hidden_layers": len(types)}),
        parts.pattern_override(BLOCKS[t] for t in types),
        *knobs(
            "ssm",
            n_heads=heads,
            expand=width / config["hidden_size"],
            d_state=config["ssm_state_size"],
            n_groups=config["n_groups"],
            conv_width=config["conv_kernel"],
            chunk=config["chunk_size"],
            dt_limit=(0.0 if smallest <= NO_LIMIT else smallest, math.inf),
            bias=config["use_bias"],
            conv_bias=config["use_conv_bias"],
        ),
        f"model.norm.eps={config['layer_norm_epsilon']}",
        f"model.ssm.norm.eps={config['layer_norm_epsilon']}",
        f"model.ffn.bias={config['mlp_bias']}",
    ]
