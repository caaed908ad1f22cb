"""RWKV-7 in the layout of flash-linear-attention's checkpoints, which mlx-lm reads."""

import re
from typing import Any

import mlx.nn as nn

from lmxexp.export import parts
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require
from lmxexp.model.attention.rwkv7 import RWKV7
from lmxexp.model.attention.rwkv7_channel_mix import RWKV7ChannelMix
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "RWKV7ForCausalLM"
IN_TRANSFORMERS = False
DEFAULTS = {"head_dim": 64, "norm_eps": 1e-5, "intermediate_size": None, "tie_word_embeddings": False, "chunk_size": 32}
_RANKS = {
    "w_lora": ("decay_rank", "decay_low_rank_dim"),
    "a_lora": ("a_rank", "a_low_rank_dim"),
    "v_lora": ("v_rank", "v_low_rank_dim"),
    "g_lora": ("gate_rank", "gate_low_rank_dim"),
}
_GROUP_NORM_EPS = 64e-5
_NAMES = {
    "time": {
        "input_layernorm": "attn_norm",
        "self_attn": "attn",
        "_lora.down.": "_lora.lora.0.",
        "_lora.up.": "_lora.lora.2.",
        "_lora.bias": "_lora.lora.2.bias",
    },
    "channel": {
        "input_layernorm": "ffn_norm",
        "self_attn.up_proj": "ffn.key",
        "self_attn.down_proj": "ffn.value",
        "self_attn": "ffn",
    },
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = [is_exactly(layer, PreNorm, "the block") for layer in model.layers]
    require(all(layer.mlp is None for layer in layers), "there are feed-forwards beside the channel mixing")
    require(len(layers) % 2 == 0, "the last time mixing has no channel mixing behind it")
    times = [is_exactly(layer.self_attn, RWKV7, "a mixer") for layer in layers[::2]]
    channels = [is_exactly(layer.self_attn, RWKV7ChannelMix, "a mixer") for layer in layers[1::2]]
    n_heads, head_dim = (all_equal((getattr(m, k) for m in times), k) for k in ("n_heads", "head_dim"))
    require(n_heads * head_dim == model.d_model, f"heads are {n_heads * head_dim} wide together, not {model.d_model}")
    eps = all_equal((m.eps for m in times), "eps of the group norms")
    require(eps == _GROUP_NORM_EPS, f"eps of the group norms is {eps:g}, not {_GROUP_NORM_EPS:g}")
    norms = [model.embedding_norm, model.norm, *parts.block_norms(layers)]
    require(all(type(norm) is nn.LayerNorm for norm in norms), "a norm is no LayerNorm")
    require(parts.has_bias(*norms), "the norms have no biases")
    # The first time mixing has none of the layers that mix values; alone, it says nothing about their rank.
    ranks = {
        theirs: all_equal((m[name].down.weight.shape[0] for m in times if name in m), "rank")
        for name, (_, theirs) in _RANKS.items()
        if any(name in m for m in times)
    }
    return {
        **parts.base_config(model, normed_embedding=True),
        "num_hidden_layers": len(times),
        "num_heads": n_heads,
        "head_dim": head_dim,
        "intermediate_size": all_equal((m.d_ff for m in channels), "d_ff"),
        "hidden_act": "sqrelu",
        "norm_eps": all_equal((n.eps for n in norms), "eps of the norms"),
        "norm_first": True,
        "norm_bias": True,
        "v_low_rank_dim": 32,
        **ranks,
        "chunk_size": all_equal((m.chunk for m in times), "chunk"),  # nobody else's: rounding depends on it
    }


def ties(model: LanguageModel) -> list[Tie]:
    shaped = []
    for i in range(0, len(model.layers), 2):
        mixer = model.layers[i].self_attn
        shapes = {f"x_{m}": (1, 1, model.d_model) for m in "rwkvag"} | {"r_k": (mixer.n_heads, mixer.head_dim)}
        shaped += [_in_shape(f"layers.{i}.self_attn.{name}", shape) for name, shape in shapes.items()]
    tied_here = {tie.ours[0] for tie in shaped}
    return shaped + renamed(model, lambda ours: None if ours in tied_here else _name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="sqrelu", norm_first=True, norm_bias=True, attn=None, fuse_norm=False)
    d_model, head_dim = config["hidden_size"], config["head_dim"]
    require(config.get("value_dim") in (None, d_model, [d_model] * config["num_hidden_layers"]), "values are wider")
    return [
        "model=rwkv7",
        f"model.d_model={d_model}",
        f"model.n_layers={2 * config['num_hidden_layers']}",
        f"model.n_heads={d_model // head_dim}",
        f"model.head_dim={head_dim}",
        f"model.d_ff={config['intermediate_size'] or 4 * d_model}",
        *(f"model.{norm}.eps={config['norm_eps']}" for norm in ("norm", "embedding_norm")),
        f"model.attention.chunk={config['chunk_size']}",
        *(f"model.attention.{ours}={config[theirs]}" for ours, theirs in _RANKS.values() if config.get(theirs)),
        parts.embedding_override(config),
    ]


def _in_shape(ours: str, shape: tuple[int, ...]) -> Tie:
    """A vector that has other axes there."""
    return Tie((ours,), (_name(ours),), lambda a: (a.reshape(shape),), lambda a: (a.reshape(-1),))


def _name(ours: str) -> str:
    """Two layers of ours are one of theirs."""
    match = re.fullmatch(r"layers\.(\d+)\.(.*)", ours)
    if match is None:
        whole = {"embedding.embed_tokens": "model.embeddings", "embedding.lm_head": "lm_head", "norm": "model.norm"}
        part, _, array = ours.rpartition(".")
        return f"{whole.get(part, 'model.layers.0.pre_norm')}.{array}"
    layer, rest = int(match[1]), match[2]
    for mine, their in _NAMES["channel" if layer % 2 else "time"].items():
        rest = rest.replace(mine, their)
    return f"model.layers.{layer // 2}.{rest}"
