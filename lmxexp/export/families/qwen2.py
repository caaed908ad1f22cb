"""Qwen 2 and 2.5: a llama with biases on queries, keys and values alone."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Qwen2ForCausalLM"
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=False) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(parts.has_bias(*(p for m in mixers for p in parts.qkv(m))), "queries, keys and values have no biases")
    others = [m.o_proj for m in mixers] + [p for f in ffns for p in parts.three(f)]
    require(not parts.has_bias(*others), "there are biases beyond those of queries, keys and values")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        **parts.qwen_window(mixers),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("qwen2", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.window_overrides(parts.read_qwen_window(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        parts.embedding_override(config),
    ]
