"""nanochat, as transformers has it."""

from typing import Any

import mlx.core as mx

from lmxexp.export import parts, rotary
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.mlp import MLP
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "NanoChatForCausalLM"
DEFAULTS = {
    "hidden_act": "relu2",
    "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 15.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
_NAMES = {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=True) for layer in layers]
    ffns = [is_exactly(layer.mlp, MLP, "the feed-forward") for layer in layers]
    require(not parts.has_bias(*(p for f in ffns for p in (f.up_proj, f.down_proj))), "the feed-forward has biases")
    norms = [model.embedding_norm, model.norm, *parts.block_norms(layers), *parts.head_norms(mixers)]
    return {
        **parts.base_config(model, normed_embedding=True, capped_logits=True),
        **parts.attention_sizes(mixers),
        **parts.ffn_sizes(ffns),
        "final_logit_softcapping": parts.cap(model.logit_softcap),
        "rms_norm_eps": parts.rms_eps(*norms, scaled=False),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    turned = [
        _halves_swapped(f"layers.{i}.self_attn.{proj}.{array}", n_heads)
        for i, layer in enumerate(model.layers)
        for proj, n_heads in (("q_proj", layer.self_attn.n_heads), ("k_proj", layer.self_attn.n_kv_heads))
        for array in ("weight", "bias")
        if array in layer.self_attn[proj]
    ]
    tied_here = {tie.ours[0] for tie in turned}
    return turned + renamed(model, lambda ours: None if ours in tied_here else _name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="relu2")
    return [
        *parts.size_overrides("nanochat", config),
        "attention=gqa",
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.cap_overrides("logit_softcap", config["final_logit_softcapping"]),
        *(f"model.{norm}.eps={config['rms_norm_eps']}" for norm in ("norm", "embedding_norm", "qk_norm.norm")),
        f"model.bias={config['attention_bias']}",
        "model.ffn.bias=false",
        parts.embedding_override(config),
    ]


def _name(ours: str) -> str:
    for mine, their in _NAMES.items():
        ours = ours.replace(mine, their)
    return standard_name(ours)


def _halves_swapped(ours: str, n_heads: int) -> Tie:
    """Of queries and keys: theirs are turned the other way round, which is ours with the halves of a head exchanged.

    They are normalised after they are turned, and ours before: a norm without a scale does not see the difference.
    """

    def swap(a: mx.array) -> tuple[mx.array]:
        heads = a.reshape(n_heads, 2, -1, *a.shape[1:])
        return (mx.concatenate([heads[:, 1:], heads[:, :1]], axis=1).reshape(a.shape),)

    return Tie((ours,), (standard_name(ours),), swap, swap)
