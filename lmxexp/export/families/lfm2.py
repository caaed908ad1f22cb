"""LFM2: gated short convolutions among attention with qk-norm."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, require, standard_name
from lmxexp.export.state_space import knobs, renamed_with_convolutions
from lmxexp.model.attention.short_conv import ShortConv
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Lfm2ForCausalLM"
DEFAULTS = {
    "norm_eps": 1e-5,
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_multiple_of": 256,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": True,
    "tie_word_embeddings": True,
}
NAMES = {
    "model.norm.": "model.embedding_norm.",
    ".input_layernorm.": ".operator_norm.",
    ".post_attention_layernorm.": ".ffn_norm.",
    ".mlp.gate_proj.": ".feed_forward.w1.",
    ".mlp.up_proj.": ".feed_forward.w3.",
    ".mlp.down_proj.": ".feed_forward.w2.",
    ".self_attn.o_proj.": ".self_attn.out_proj.",
    ".self_attn.q_norm.": ".self_attn.q_layernorm.",
    ".self_attn.k_norm.": ".self_attn.k_layernorm.",
}
"""Ours, behind `standard_name`, to theirs."""


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    convs = [layer.self_attn for layer in layers if type(layer.self_attn) is ShortConv]
    mixers = [
        parts.plain_attention(layer.self_attn, qk_norm=True)
        for layer in layers
        if type(layer.self_attn) is not ShortConv
    ]
    require(convs and mixers, "there is no short convolution, or no attention")
    require(not parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))), "attention has biases")
    ffns = parts.gated_ffns(layers)
    require(all(f.activation_name == "silu" for f in ffns), "the activation is not silu")
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    sizes = parts.attention_sizes(mixers)
    d_ff = all_equal((f.d_ff for f in ffns), "d_ff")
    return {
        **parts.base_config(model),
        **sizes,
        "intermediate_size": d_ff,
        "layer_types": ["conv" if type(layer.self_attn) is ShortConv else "full_attention" for layer in layers],
        "norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers), *parts.head_norms(mixers)),
        "conv_L_cache": all_equal((c.conv.width for c in convs), "conv_width"),
        "conv_bias": parts.has_bias(*(p for c in convs for p in (c.in_proj, c.conv, c.out_proj))),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        # The width above is the width: nothing is to be computed from it.
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_dim": model.d_model,
        "block_ff_dim": d_ff,
    }


def ties(model: LanguageModel) -> list[Tie]:
    convs = {f"layers.{i}." for i, layer in enumerate(model.layers) if type(layer.self_attn) is ShortConv}

    def name(ours: str) -> str:
        theirs = standard_name(ours)
        if any(ours.startswith(prefix) for prefix in convs):
            theirs = theirs.replace(".self_attn.", ".conv.")
        for mine, their in NAMES.items():
            theirs = theirs.replace(mine, their)
        return theirs

    return renamed_with_convolutions(model, name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    types = config.get("layer_types") or _types(config)
    unknown = sorted(set(types) - {"conv", "full_attention"})
    require(not unknown, f"layer_types has {', '.join(unknown)}")
    tied = config.get("tie_embedding", config["tie_word_embeddings"])
    return [
        *parts.size_overrides("lfm2", {**config, "intermediate_size": _d_ff(config)}),
        parts.pattern_override("conv" if t == "conv" else "layer" for t in types),
        *knobs("conv", conv_width=config["conv_L_cache"], bias=config["conv_bias"]),
        *rotary.rope_overrides(rotary.read_rope(config, theta=1e6)),
        f"model.norm.eps={config['norm_eps']}",
        f"model.qk_norm.norm.eps={config['norm_eps']}",
        parts.embedding_override({"tie_word_embeddings": tied}),
    ]


def _types(config: dict[str, Any]) -> list[str]:
    """From the numbers of the layers with attention, in older files."""
    n = config["num_hidden_layers"]
    attends = config.get("full_attn_idxs")
    return ["full_attention" if attends is None or i in attends else "conv" for i in range(n)]


def _d_ff(config: dict[str, Any]) -> int:
    """The width of the feed-forward, which files may state before an adjustment."""
    width = config.get("block_ff_dim") or config["intermediate_size"]
    if not config["block_auto_adjust_ff_dim"]:
        return width
    width = int(2 * width / 3)
    if config["block_ffn_dim_multiplier"] is None:
        return width
    multiple = config["block_multiple_of"]
    return -(-int(config["block_ffn_dim_multiplier"] * width) // multiple) * multiple
