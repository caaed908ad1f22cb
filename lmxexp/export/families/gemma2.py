"""Gemma 2: windows in some layers, norms on both sides of the sublayers, soft caps on scores and logits."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.sandwich import Sandwich
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Gemma2ForCausalLM"
DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
    "attention_bias": False,
    "tie_word_embeddings": True,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, Sandwich)
    mixers = [
        parts.plain_attention(layer.self_attn, reach=None, may_have=["softcap"], qk_norm=False, own_scale=True)
        for layer in layers
    ]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    window, types = parts.one_window(mixers)
    return {
        **parts.base_config(model, embedding_scale=model.d_model**0.5, capped_logits=True),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns, "hidden_activation"),
        "query_pre_attn_scalar": parts.query_pre_attn_scalar(mixers),
        "sliding_window": window or DEFAULTS["sliding_window"],  # it has to be there even if no layer reads it
        "layer_types": types,
        "attn_logit_softcapping": all_equal((parts.cap(m.softcap) for m in mixers), "the cap of scores"),
        "final_logit_softcapping": parts.cap(model.logit_softcap),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers), offset=1.0),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
    alternating = [("sliding_attention", "full_attention")[i % 2] for i in range(config["num_hidden_layers"])]
    return [
        *parts.size_overrides("gemma2", config),
        *parts.local_overrides(config, alternating),
        *parts.score_scale_overrides(config["query_pre_attn_scalar"], config),
        *parts.cap_overrides("score_softcap", config["attn_logit_softcapping"]),
        *parts.cap_overrides("logit_softcap", config["final_logit_softcapping"]),
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
    ]
