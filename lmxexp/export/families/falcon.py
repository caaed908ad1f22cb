"""Falcon: 7B with one norm and one key head, 40B with a norm each and several key heads, and what lies between."""

import re
from typing import Any

import mlx.nn as nn

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require
from lmxexp.export.fused_qkv import fused_by_group
from lmxexp.model.block.parallel import Parallel
from lmxexp.model.block.parallel_two_norms import ParallelTwoNorms
from lmxexp.model.ffn.mlp import MLP
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "FalconForCausalLM"
DEFAULTS = {
    "activation": "gelu",
    "alibi": False,
    "bias": False,
    "ffn_hidden_size": None,
    "layer_norm_epsilon": 1e-5,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_kv_heads": None,
    "num_ln_in_parallel_attn": None,
    "parallel_attn": True,
    "tie_word_embeddings": True,
}
_NAMES = {
    "embedding.embed_tokens": "word_embeddings",
    "self_attn.o_proj": "self_attention.dense",
    "mlp.up_proj": "mlp.dense_h_to_4h",
    "mlp.down_proj": "mlp.dense_4h_to_h",
}


def config(model: LanguageModel) -> dict[str, Any]:
    two_norms = all_equal((type(layer) is ParallelTwoNorms for layer in model.layers), "the block")
    layers = parts.layers_of(model, ParallelTwoNorms if two_norms else Parallel)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers]
    sizes = parts.attention_sizes(mixers)
    n_heads, head_dim, n_kv_heads = (sizes[k] for k in ("num_attention_heads", "head_dim", "num_key_value_heads"))
    require(n_heads * head_dim == model.d_model, f"heads are {n_heads * head_dim} wide together, not {model.d_model}")
    ffns = [is_exactly(layer.mlp, MLP, "the feed-forward") for layer in layers]
    norms = [is_exactly(norm, nn.LayerNorm, "a norm") for norm in (model.norm, *parts.block_norms(layers))]
    require(parts.has_bias(*norms), "the norms have no biases")
    linear = [p for m in mixers for p in (*parts.qkv(m), m.o_proj)] + [
        p for f in ffns for p in (f.up_proj, f.down_proj)
    ]
    ffn = parts.ffn_sizes(ffns)
    new = two_norms or n_kv_heads > 1
    return {
        **parts.base_config(model),
        "num_attention_heads": n_heads,
        "num_kv_heads": n_kv_heads,
        "multi_query": True,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if two_norms else 1 if new else None,
        "parallel_attn": True,
        "alibi": False,
        "bias": parts.has_bias(*linear),
        "ffn_hidden_size": ffn["intermediate_size"],
        "activation": ffn["hidden_act"],
        "layer_norm_epsilon": all_equal((n.eps for n in norms), "eps of the norms"),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_dropout": sizes["attention_dropout"],
        "hidden_dropout": sizes["attention_dropout"],
    }


def ties(model: LanguageModel) -> list[Tie]:
    fused = [
        fused_by_group(
            f"layers.{i}.self_attn", _name(f"layers.{i}.self_attention.query_key_value"), array, m.n_heads, m.n_kv_heads
        )
        for i, m in enumerate(model.mixers())
        for array in ("weight", "bias")
        if array in m.q_proj
    ]
    tied_here = {name for tie in fused for name in tie.ours}
    two_norms = type(model.layers[0]) is ParallelTwoNorms
    return fused + renamed(model, lambda ours: None if ours in tied_here else _name(ours, two_norms))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    new = config["new_decoder_architecture"]
    parts.require_values(config, alibi=False, parallel_attn=True)
    if not new:  # where there is one norm whatever the file says
        require(config["num_ln_in_parallel_attn"] != 2, "num_ln_in_parallel_attn is 2 without new_decoder_architecture")
    ours = {theirs: name for name, theirs in parts.ACTIVATIONS.items()}
    require(config["activation"] in ours, f"activation is {config['activation']}")
    d_model, n_heads = config["hidden_size"], config["num_attention_heads"]
    if new:
        n_kv_heads = config["num_kv_heads"] or n_heads
    else:
        n_kv_heads = 1 if config["multi_query"] else n_heads
    two_norms = new and config["num_ln_in_parallel_attn"] in (None, 2)
    sizes = {
        **config,
        "num_key_value_heads": n_kv_heads,
        "head_dim": d_model // n_heads,
        "intermediate_size": config["ffn_hidden_size"] or 4 * d_model,
    }
    return [
        *parts.size_overrides("falcon", sizes),
        "attention=gqa",
        f"block={'parallel_two_norms' if two_norms else 'parallel'}",
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.ffn.activation={ours[config['activation']]}",
        f"model.norm.eps={config['layer_norm_epsilon']}",
        f"model.bias={config['bias']}",
        parts.embedding_override(config),
    ]


def _name(ours: str, two_norms: bool = False) -> str:
    if ours == "embedding.lm_head.weight":
        return "lm_head.weight"
    for mine, their in _NAMES.items():
        ours = ours.replace(mine, their)
    if two_norms:
        ours = ours.replace("input_layernorm", "ln_attn").replace("post_attention_layernorm", "ln_mlp")
    ours = re.sub(r"^norm\.", "ln_f.", ours)
    return "transformer." + re.sub(r"^layers\.", "h.", ours)
