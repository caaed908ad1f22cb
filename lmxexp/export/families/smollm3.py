"""SmolLM3: a llama with layers that have no positions."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "SmolLM3ForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "no_rope_layer_interval": 4,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers]
    ffns = parts.gated_ffns(layers)
    positions = [m.position for m in mixers if m.position is not None]
    require(positions, "no layer has positions")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": all_equal((rotary.rope_parameters(p) for p in positions), "rope"),
        # Theirs is 1 where there are positions, whatever the name says.
        "no_rope_layers": [int(m.position is not None) for m in mixers],
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
        "mlp_bias": parts.has_bias(*(p for f in ffns for p in parts.three(f))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu", use_sliding_window=False)
    interval, n_layers = config["no_rope_layer_interval"], config["num_hidden_layers"]
    turned = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(n_layers)]
    return [
        *parts.size_overrides("smollm3", config),
        parts.pattern_override("layer" if turns else "nope" for turns in turned[:n_layers]),
        *rotary.rope_overrides(rotary.read_rope(config, theta=2e6)),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        f"model.ffn.bias={config['mlp_bias']}",
        parts.embedding_override(config),
    ]
