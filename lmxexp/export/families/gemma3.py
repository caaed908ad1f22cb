"""The text part of Gemma 3: most layers have a window and a base of their own for rotary positions."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, renamed, require, standard_name
from lmxexp.model.block.sandwich import Sandwich
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Gemma3ForCausalLM"
MODEL_TYPE = "gemma3_text"
PATTERN = 6
DEFAULTS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": PATTERN,
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": False,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, Sandwich)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=True, own_scale=True) for layer in layers]
    ffns = parts.gated_ffns(layers)
    require(not parts.has_bias(*(p for f in ffns for p in parts.three(f))), "the feed-forward has biases")
    window, types = parts.one_window(mixers)
    ropes = {
        kind: all_equal(
            (rotary.rope_parameters(m.position) for m, t in zip(mixers, types, strict=True) if t == kind), "rope"
        )
        for kind in sorted(set(types))
    }
    norms = [model.norm, *parts.block_norms(layers), *parts.head_norms(mixers)]
    return {
        **parts.base_config(model, embedding_scale=model.d_model**0.5),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns, "hidden_activation"),
        "query_pre_attn_scalar": parts.query_pre_attn_scalar(mixers),
        "sliding_window": window or DEFAULTS["sliding_window"],  # it has to be there even if no layer reads it
        "layer_types": types,
        "rms_norm_eps": parts.rms_eps(*norms, offset=1.0),
        "rope_parameters": ropes,
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
        **_older_names(ropes, types),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(
        config,
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        use_bidirectional_attention=False,
        attn_logit_softcapping=None,
    )
    n, every = config["num_hidden_layers"], config["sliding_window_pattern"]
    ropes = config.get("rope_parameters") or {}
    wide = {"rope_theta": config.get("rope_theta", 1e6), "rope_scaling": config.get("rope_scaling")}
    near = {"rope_theta": config.get("rope_local_base_freq", 1e4)}
    wide["rope_parameters"], near["rope_parameters"] = ropes.get("full_attention"), ropes.get("sliding_attention")
    return [
        *parts.size_overrides("gemma3", config),
        *parts.local_overrides(config, _types(n, every)),
        *parts.score_scale_overrides(config["query_pre_attn_scalar"], config),
        *parts.cap_overrides("logit_softcap", config["final_logit_softcapping"]),
        *rotary.rope_overrides(rotary.read_rope(wide)),
        *rotary.rope_overrides(rotary.read_rope(near), "local_position"),
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.qk_norm.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
    ]


def _types(n_layers: int, every: int) -> list[str]:
    """Every so many layers one without a window."""
    return ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(n_layers)]


def _older_names(ropes: dict[str, Any], types: list[str]) -> dict[str, Any]:
    """What files of before ``layer_types`` and ``rope_parameters`` said, for libraries that read no other."""
    names: dict[str, Any] = {}
    if types == _types(len(types), PATTERN):
        names["sliding_window_pattern"] = PATTERN
    if "sliding_attention" in ropes:
        names["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    if "full_attention" in ropes:
        names["rope_theta"] = ropes["full_attention"]["rope_theta"]
        if ropes["full_attention"]["rope_type"] != "default":
            names["rope_scaling"] = ropes["full_attention"]
    return names
