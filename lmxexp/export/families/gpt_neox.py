"""GPT-NeoX and Pythia."""

import re
from typing import Any

import mlx.nn as nn

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require
from lmxexp.export.fused_qkv import fused_by_group
from lmxexp.model.block.parallel_two_norms import ParallelTwoNorms
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.mlp import MLP
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.position.rope import RoPE

ARCHITECTURE = "GPTNeoXForCausalLM"
BUFFERS = r"\.attention\.(masked_)?bias$"
DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
}
_NAMES = {
    "embedding.embed_tokens": "embed_in",
    "self_attn.o_proj": "attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def config(model: LanguageModel) -> dict[str, Any]:
    parallel = all_equal((type(layer) is ParallelTwoNorms for layer in model.layers), "the block")
    layers = parts.layers_of(model, ParallelTwoNorms if parallel else PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers]
    sizes = parts.attention_sizes(mixers)
    n_heads, head_dim = sizes["num_attention_heads"], sizes["head_dim"]
    require(
        sizes["num_key_value_heads"] == n_heads, f"there are {sizes['num_key_value_heads']} key heads, not {n_heads}"
    )
    require(n_heads * head_dim == model.d_model, f"heads are {n_heads * head_dim} wide together, not {model.d_model}")
    ffns = [is_exactly(layer.mlp, MLP, "the feed-forward") for layer in layers]
    require(parts.has_bias(*(p for f in ffns for p in (f.up_proj, f.down_proj))), "the feed-forward has no biases")
    norms = [is_exactly(norm, nn.LayerNorm, "a norm") for norm in (model.norm, *parts.block_norms(layers))]
    require(parts.has_bias(*norms), "the norms have no biases")
    rope = all_equal((rotary.rope_parameters(m.position, partial=True) for m in mixers), "rope")
    fraction, turned = rope["partial_rotary_factor"], is_exactly(mixers[0].position, RoPE, "the position").dims
    require(int(head_dim * fraction) == turned, f"{fraction:g} of a head of {head_dim} is no whole number of pairs")
    return {
        **parts.base_config(model),
        "num_attention_heads": n_heads,
        "attention_dropout": sizes["attention_dropout"],
        "hidden_dropout": sizes["attention_dropout"],
        **parts.ffn_sizes(ffns),
        "use_parallel_residual": parallel,
        "layer_norm_eps": all_equal((n.eps for n in norms), "eps of the norms"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
        "rope_parameters": rope,
        "rotary_pct": fraction,  # older names, which mlx-lm reads
        "rotary_emb_base": rope["rope_theta"],
    }


def ties(model: LanguageModel) -> list[Tie]:
    fused = [
        fused_by_group(
            f"layers.{i}.self_attn", _name(f"layers.{i}.attention.query_key_value"), array, m.n_heads, m.n_heads
        )
        for i, m in enumerate(model.mixers())
        for array in ("weight", "bias")
        if array in m.q_proj
    ]
    tied_here = {name for tie in fused for name in tie.ours}
    return fused + renamed(model, lambda ours: None if ours in tied_here else _name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    ours = {theirs: name for name, theirs in parts.ACTIVATIONS.items()} | {"gelu_new": "gelu_tanh"}
    activation = config["hidden_act"]
    require(activation in ours, f"hidden_act is {activation}")
    rope = rotary.read_rope(config, theta=config.get("rotary_emb_base", 10000.0))
    rope.setdefault("partial_rotary_factor", config["rotary_pct"])
    return [
        *parts.size_overrides("gpt_neox", config),
        *rotary.rope_overrides(rope),
        f"block={'parallel_two_norms' if config['use_parallel_residual'] else 'pre_norm'}",
        f"model.ffn.activation={ours[activation]}",
        f"model.norm.eps={config['layer_norm_eps']}",
        f"model.attention.bias={config['attention_bias']}",
        f"model.attention.qkv_bias={config['attention_bias']}",
        parts.embedding_override(config),
    ]


def _name(ours: str) -> str:
    if ours == "embedding.lm_head.weight":
        return "embed_out.weight"
    for mine, their in _NAMES.items():
        ours = ours.replace(mine, their)
    return "gpt_neox." + re.sub(r"^norm\.", "final_layer_norm.", ours)
