"""Phi-3: a llama whose projections are joined in the checkpoint."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, joined, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Phi3ForCausalLM"
DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "sliding_window": None}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=False) for layer in layers]
    ffns = parts.gated_ffns(layers)
    linear = [p for m in mixers for p in (*parts.qkv(m), m.o_proj)] + [p for f in ffns for p in parts.three(f)]
    require(not parts.has_bias(*linear), "there are biases")
    sizes = parts.attention_sizes(mixers)
    rope = all_equal((rotary.rope_parameters(m.position, partial=True) for m in mixers), "rope")
    require(rope["rope_type"] == "default", f"rope is scaled: {rope['rope_type']}")
    return {
        **parts.base_config(model),
        **sizes,
        **parts.ffn_sizes(ffns),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": rope,
        "sliding_window": all_equal(parts.windows(mixers), "the window"),
        **dict.fromkeys(("embd_pdrop", "resid_pdrop"), sizes["attention_dropout"]),
    }


def ties(model: LanguageModel) -> list[Tie]:
    special = []
    for i, layer in enumerate(model.layers):
        for part, names, theirs in (
            ("self_attn", ("q_proj", "k_proj", "v_proj"), "qkv_proj"),
            ("mlp", ("gate_proj", "up_proj"), "gate_up_proj"),
        ):
            ours = [f"layers.{i}.{part}.{name}.weight" for name in names]
            sizes = [layer[part][name].weight.shape[0] for name in names]
            special.append(joined(ours, f"model.layers.{i}.{part}.{theirs}.weight", sizes))
    tied_here = {name for tie in special for name in tie.ours}
    return special + renamed(model, lambda ours: None if ours in tied_here else standard_name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu")
    return [
        *parts.size_overrides("phi3", config),
        *parts.window_overrides(config["sliding_window"]),
        *rotary.rope_overrides(rotary.read_rope(config)),
        f"model.norm.eps={config['rms_norm_eps']}",
        parts.embedding_override(config),
    ]
