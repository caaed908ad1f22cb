"""GPT-2."""

import re
from typing import Any

import mlx.nn as nn

from lmxexp.export import parts
from lmxexp.export.family import Tie, all_equal, is_exactly, joined, renamed, require, transposed
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.mlp import MLP
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.position.learned import LearnedPosition

ARCHITECTURE = "GPT2LMHeadModel"
MODEL_TYPE = "gpt2"
PREFIX = "transformer."
BUFFERS = r"\.attn\.(masked_)?bias$"
DEFAULTS = {
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_positions": 1024,
    "tie_word_embeddings": True,
}
ACTIVATIONS = {**parts.ACTIVATIONS, "gelu_tanh": "gelu_new"}
_NAMES = {
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, qk_norm=False) for layer in layers]
    require(all(m.position is None for m in mixers), "attention has positions")
    sizes = parts.attention_sizes(mixers)
    for key, want in {"num_key_value_heads": sizes["num_attention_heads"], "attention width": model.d_model}.items():
        found = sizes["num_attention_heads"] * sizes["head_dim"] if key == "attention width" else sizes[key]
        require(found == want, f"{key} is {found}, not {want}")
    ffns = [is_exactly(layer.mlp, MLP, "the feed-forward") for layer in layers]
    linear = [p for m in mixers for p in (*parts.qkv(m), m.o_proj)] + [
        p for f in ffns for p in (f.up_proj, f.down_proj)
    ]
    norms = [is_exactly(norm, nn.LayerNorm, "a norm") for norm in (model.norm, *parts.block_norms(layers))]
    require(parts.has_bias(*linear, *norms), "there are no biases")
    base = parts.base_config(model, embedded_positions=True)
    positions = is_exactly(model.position_embedding, LearnedPosition, "the position embedding")
    return {
        "vocab_size": base["vocab_size"],
        "n_embd": base["hidden_size"],
        "n_layer": base["num_hidden_layers"],
        "n_head": sizes["num_attention_heads"],
        "n_positions": positions.max_len,
        "n_ctx": positions.max_len,
        "n_inner": all_equal((f.d_ff for f in ffns), "d_ff"),
        "activation_function": ACTIVATIONS[all_equal((f.activation_name for f in ffns), "the activation")],
        "layer_norm_epsilon": all_equal((n.eps for n in norms), "eps of the norms"),
        "tie_word_embeddings": base["tie_word_embeddings"],
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), sizes["attention_dropout"]),
    }


def ties(model: LanguageModel) -> list[Tie]:
    special = [tie for i in range(len(model.layers)) for tie in _of_layer(model, i)]
    tied_here = {name for tie in special for name in tie.ours}
    return special + renamed(model, lambda ours: None if ours in tied_here else _name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    ours = {theirs: name for name, theirs in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    activation = config["activation_function"]
    require(activation in ours, f"activation_function is {activation}")
    parts.require_values(
        config,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    d_model = config["n_embd"]
    return [
        "model=gpt",
        f"model.d_model={d_model}",
        f"model.n_layers={config['n_layer']}",
        f"model.n_heads={config['n_head']}",
        f"model.head_dim={d_model // config['n_head']}",
        f"model.d_ff={config['n_inner'] or 4 * d_model}",
        f"model.ffn.activation={ours[activation]}",
        f"model.norm.eps={config['layer_norm_epsilon']}",
        f"model.position.embedding.max_len={config['n_positions']}",
        parts.embedding_override(config),
    ]


def _name(ours: str) -> str:
    for mine, their in {"embedding.embed_tokens": "wte", "position_embedding": "wpe", "layers.": "h."}.items():
        ours = re.sub(f"^{re.escape(mine)}", their, ours)
    for mine, their in _NAMES.items():
        ours = ours.replace(mine, their)
    if ours == "embedding.lm_head.weight":
        return "lm_head.weight"
    return re.sub(r"^norm\.", "ln_f.", ours)


def _of_layer(model: LanguageModel, i: int) -> list[Tie]:
    """Queries, keys and values are one product there, and all matrices of products are stored transposed."""
    d, layer = model.d_model, f"layers.{i}"
    projections = [f"{layer}.self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj")]
    weight = joined((f"{p}.weight" for p in projections), f"h.{i}.attn.c_attn.weight", [d] * 3)
    return [
        Tie(
            weight.ours,
            weight.theirs,
            lambda *a: tuple(x.T for x in weight.to_theirs(*a)),
            lambda a: weight.to_ours(a.T),
        ),
        joined((f"{p}.bias" for p in projections), f"h.{i}.attn.c_attn.bias", [d] * 3),
        *(transposed(f"{layer}.{p}.weight", _name(f"{layer}.{p}.weight")) for p in list(_NAMES)[2:]),
    ]
