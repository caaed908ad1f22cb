"""The first Gemma."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "GemmaForCausalLM"
DEFAULTS = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    ffn = parts.ffn_sizes(ffns)
    # transformers reads "gelu" as the tanh approximation here, for the sake of early files that meant it.
    require(ffn["hidden_act"] != "gelu", "the activation is the exact gelu")
    return {
        **parts.base_config(model, embedding_scale=model.d_model**0.5),
        **parts.attention_sizes(mixers),
        **ffn,
        "hidden_activation": ffn["hidden_act"],
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers), offset=1.0),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    activations = (None, "gelu", "gelu_pytorch_tanh")
    require(config["hidden_act"] in activations, f"hidden_act is {config['hidden_act']}")
    require(config["tie_word_embeddings"], "embedding and head are apart")
    return [
        *parts.size_overrides("gemma", config),
        "attention=gqa",
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
    ]
