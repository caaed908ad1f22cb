"""OLMo 2: norms after the sublayers, a norm on all heads' queries and keys together."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.post_norm import PostNorm
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.qk_norm.all_heads import AllHeads

ARCHITECTURE = "Olmo2ForCausalLM"
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "tie_word_embeddings": False}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PostNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=True) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    head_norms = [n.norm for n in parts.head_norms(mixers, AllHeads)]
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers), *head_norms),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, lambda ours: standard_name(ours).replace("_norm.norm.", "_norm."))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("olmo2", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.qk_norm.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
        parts.embedding_override(config),
    ]
