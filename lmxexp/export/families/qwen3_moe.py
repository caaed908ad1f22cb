"""Qwen 3 with experts in every layer."""

from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.experts import LLAMA_NAMES
from lmxexp.export.families.mixtral import mixture_overrides, mixture_sizes, mixture_ties, plain_mixture
from lmxexp.export.family import Tie, all_equal, require, standard_name
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Qwen3MoeForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "router_aux_loss_coef": 0.001,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, qk_norm=True) for layer in layers]
    moes = [plain_mixture(layer.mlp) for layer in layers]
    norms = [model.norm, *parts.block_norms(layers), *parts.head_norms(mixers)]
    d_expert = all_equal((moe.d_expert for moe in moes), "d_expert")
    sizes = mixture_sizes(moes)
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **parts.qwen_window(mixers),
        **sizes,
        "intermediate_size": d_expert * sizes["num_experts_per_tok"],  # of dense layers, of which there are none
        "moe_intermediate_size": d_expert,
        "num_experts": all_equal((moe.n_experts for moe in moes), "n_experts"),
        "norm_topk_prob": all_equal((moe.router.norm_topk_prob for moe in moes), "norm_topk_prob"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "rms_norm_eps": parts.rms_eps(*norms),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return mixture_ties(
        model, lambda ours: standard_name(ours).replace(".mlp.router.", ".mlp."), "mlp.experts", LLAMA_NAMES
    )


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu", decoder_sparse_step=1)
    n_experts = config.get("num_experts", config.get("num_local_experts", 128))  # transformers 5 writes the latter
    require(not config["mlp_only_layers"], f"layers {config['mlp_only_layers']} have no experts")
    return [
        *parts.size_overrides("qwen3_moe", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.window_overrides(parts.read_qwen_window(config)),
        *mixture_overrides(config, n_experts, config["moe_intermediate_size"]),
        f"model.ffn.router.norm_topk_prob={config['norm_topk_prob']}",
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.qk_norm.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        "model.ffn.experts.bias=false",
        parts.embedding_override(config),
    ]
