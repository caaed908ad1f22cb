"""Qwen 3: a llama with a norm on each head's query and key."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Qwen3ForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=True) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    norms = [model.norm, *parts.block_norms(layers), *parts.head_norms(mixers)]
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        **parts.qwen_window(mixers),
        "rms_norm_eps": parts.rms_eps(*norms),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("qwen3", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.window_overrides(parts.read_qwen_window(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.qk_norm.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
        parts.embedding_override(config),
    ]
