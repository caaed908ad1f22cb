"""DiffLlama: a llama with differential attention."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.attention.differential import DifferentialAttention
from lmxexp.model.attention.reach import Full
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "DiffLlamaForCausalLM"
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False, "tie_word_embeddings": False}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [_attention(layer.self_attn) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    sizes = parts.attention_sizes(mixers)
    require(sizes["attention_dropout"] == 0.0, "there is dropout, which transformers refuses here")
    eps = parts.rms_eps(model.norm, *parts.block_norms(layers))
    pairs = parts.rms_eps(*(m.head_norm for m in mixers), scaled=False)
    require(eps == pairs, f"eps of a pair's norm is {pairs:g}, and of the others {eps:g}")
    return {
        **parts.base_config(model),
        **sizes,
        **parts.ffn_sizes(ffns),
        "rms_norm_eps": eps,
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("diffllama", config),
        "attention=differential_gqa",
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.attention.head_norm.eps={config['rms_norm_eps']}",
        f"model.attention.bias={config['attention_bias']}",
        f"model.attention.qkv_bias={config['attention_bias']}",
        parts.embedding_override(config),
    ]


def _attention(mixer: Any) -> DifferentialAttention:
    """The mixer, if it is differential attention with nothing but projections and positions."""
    attention = is_exactly(mixer, DifferentialAttention, "a mixer")
    is_exactly(attention.reach, Full, "the reach of attention")
    for slot in ("q_norm", "gate", "sinks", "value_residual", "softcap"):
        require(getattr(attention, slot) is None, f"attention has {slot.replace('_', ' ')}")
    return attention
