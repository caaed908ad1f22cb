"""DeepSeek-V2: latent attention and a mixture of experts."""

import copy
from typing import Any

from lmxexp.export import parts, rotary
from lmxexp.export.experts import LLAMA_NAMES, expert_ties, silu_mixture
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.attention.mla import MultiHeadLatentAttention
from lmxexp.model.attention.reach import Full
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SoftmaxRouter
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.position.rope import RoPE

ARCHITECTURE = "DeepseekV2ForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "first_k_dense_replace": 0,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_group": None,
    "topk_group": None,
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
}
LATENT_EPS = 1e-6
"""Of the norms of the latents: the released code states none, whatever the other norms have."""


def config(model: LanguageModel) -> dict[str, Any]:
    routers, found = common_config(model, SoftmaxRouter)
    require(not any(r.norm_topk_prob for r in routers), "weights of experts are normalised")
    found["topk_method"] = "greedy" if found["n_group"] == 1 else "group_limited_greedy"
    rope = found["rope_parameters"]
    require(rope["rope_type"] in ("default", "yarn"), f"rope is scaled: {rope['rope_type']}")
    if rope["rope_type"] == "default":
        # mlx-lm takes it that there is a scaling; by a factor of 1 it is none, and `common_overrides` knows it.
        none = {"type": "yarn", "factor": 1.0, "original_max_position_embeddings": 4096}
        found["rope_scaling"] = {**none, "rope_theta": rope["rope_theta"]}
    return {**found, "norm_topk_prob": False, "scoring_func": "softmax"}


def ties(model: LanguageModel) -> list[Tie]:
    special = [
        tie
        for i, layer in enumerate(model.layers)
        if isinstance(layer.mlp, MixtureOfExperts)
        for tie in expert_ties(
            f"layers.{i}.mlp.experts", f"model.layers.{i}.mlp.experts", layer.mlp.n_experts, LLAMA_NAMES
        )
    ]
    tied_here = {name for tie in special for name in tie.ours}
    return special + renamed(model, lambda ours: None if ours in tied_here else _name(ours))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, norm_topk_prob=False, scoring_func="softmax")
    method, groups = config["topk_method"], ("n_group", "topk_group")
    require(method in ("greedy", "group_limited_greedy"), f"topk_method is {method}")
    if method == "greedy":
        config |= dict.fromkeys(groups, 1)
    return common_overrides("deepseek_v2", config)


# --- what DeepSeek-V3 has too -----------------------------------------------------------------------------------------


def common_config(model: LanguageModel, router: type[SoftmaxRouter]) -> tuple[list[Any], dict[str, Any]]:
    """The routers, which have to be of that class, and what is said of everything else."""
    layers = parts.layers_of(model, PreNorm)
    mixers = [_attention(layer.self_attn) for layer in layers]
    n_dense = next((i for i, layer in enumerate(layers) if type(layer.mlp) is not GatedLinearUnit), len(layers))
    require(n_dense < len(layers), "no layer has experts")
    dense = parts.gated_ffns(layers[:n_dense])
    moes = [silu_mixture(layer.mlp, router, GatedLinearUnit) for layer in layers[n_dense:]]
    require(not dense or not parts.has_bias(*(p for f in dense for p in parts.three(f))), "dense layers have biases")
    require(all(f.activation_name == "silu" for f in dense), "the activation of a dense layer is not silu")
    with_bias = [[m.kv_a_proj_with_mqa, m.o_proj, *([m.q_a_proj] if m.q_rank else [])] for m in mixers]
    one = lambda what, values: all_equal(values, what)
    return [moe.router for moe in moes], {
        **parts.base_config(model),
        "num_attention_heads": one("n_heads", (m.n_heads for m in mixers)),
        "num_key_value_heads": mixers[0].n_heads,
        "qk_nope_head_dim": one("head_dim", (m.head_dim for m in mixers)),
        "qk_rope_head_dim": one("rope_dim", (m.rope_dim for m in mixers)),
        "v_head_dim": one("v_dim", (m.v_dim for m in mixers)),
        "kv_lora_rank": one("kv_rank", (m.kv_rank for m in mixers)),
        "q_lora_rank": one("q_rank", (m.q_rank for m in mixers)) or None,
        "attention_dropout": one("dropout", (m.dropout for m in mixers)),
        "attention_bias": parts.has_bias(*(p for layer in with_bias for p in layer)),
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": one("rope", (_rope_parameters(m.position) for m in mixers)),
        "hidden_act": "silu",
        "first_k_dense_replace": n_dense,
        "moe_layer_freq": 1,
        "intermediate_size": one("d_ff", (f.d_ff for f in dense)) if dense else moes[0].d_expert,
        "moe_intermediate_size": one("d_expert", (moe.d_expert for moe in moes)),
        "n_routed_experts": one("n_experts", (moe.n_experts for moe in moes)),
        "n_shared_experts": one("n_shared", (moe.n_shared for moe in moes)),
        "num_experts_per_tok": one("top_k", (moe.top_k for moe in moes)),
        "routed_scaling_factor": one("scale", (moe.router.scale for moe in moes)),
        "n_group": one("n_groups", (moe.router.n_groups for moe in moes)),
        "topk_group": one("topk_groups", (moe.router.topk_groups for moe in moes)),
    }


def common_overrides(preset: str, config: dict[str, Any]) -> list[str]:
    """The overrides, but for what the router is."""
    parts.require_values(config, hidden_act="silu", moe_layer_freq=1, mlp_bias=False, quantization_config=None)
    require(config["n_shared_experts"], "there is no shared expert")
    rope = rotary.read_rope(config)
    if rope["rope_type"] == "yarn" and rope.get("factor") == 1.0 and not rope.get("attention_factor"):
        rope = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    n_layers = config["num_hidden_layers"]
    n_dense = min(config["first_k_dense_replace"], n_layers)
    sizes = {**config, "head_dim": config["qk_nope_head_dim"], "num_key_value_heads": None}
    knobs = {
        "attention.rope_dim": config["qk_rope_head_dim"],
        "attention.v_dim": config["v_head_dim"],
        "attention.kv_rank": config["kv_lora_rank"],
        "attention.q_rank": config["q_lora_rank"] or 0,
        "attention.bias": config["attention_bias"],
        "attention.qkv_bias": config["attention_bias"],
        "position.attention.interleaved": True,
        "norm.eps": config["rms_norm_eps"],
        "ffn.n_experts": config["n_routed_experts"],
        "ffn.top_k": config["num_experts_per_tok"],
        "ffn.n_shared": config["n_shared_experts"],
        "ffn.d_expert": config["moe_intermediate_size"],
        "ffn.router.scale": config["routed_scaling_factor"],
        "ffn.router.n_groups": config["n_group"] or 1,
        "ffn.router.topk_groups": config["topk_group"] or 1,
    }
    return [
        *parts.size_overrides(preset, sizes),
        parts.pattern_override(["dense"] * n_dense + ["layer"] * (n_layers - n_dense)),
        *rotary.rope_overrides(rope),
        *(f"model.{key}={value}" for key, value in knobs.items()),
        parts.embedding_override(config),
    ]


def _attention(mixer: Any) -> MultiHeadLatentAttention:
    """The mixer, if it is latent attention as released."""
    attention = is_exactly(mixer, MultiHeadLatentAttention, "a mixer")
    is_exactly(attention.reach, Full, "the reach of attention")
    require(attention.softcap is None, "attention has softcap")
    norms = [attention.kv_a_layernorm, *([attention.q_a_layernorm] if attention.q_rank else [])]
    require(parts.rms_eps(*norms) == LATENT_EPS, f"eps of the norms of latents is not {LATENT_EPS:g}")
    return attention


def _rope_parameters(position: Any) -> dict[str, Any]:
    """``rope_parameters``, in which these families do not say that they pair neighbours."""
    rope = is_exactly(position, RoPE, "the position")
    require(rope.interleaved, "rope pairs elements half a head apart")
    rope = copy.copy(rope)
    rope.interleaved = False
    return rotary.rope_parameters(rope)


def _name(ours: str) -> str:
    name = standard_name(ours).replace(".mlp.shared_expert.", ".mlp.shared_experts.")
    return name.replace(".mlp.router.gate.", ".mlp.gate.").replace(".mlp.router.", ".mlp.gate.")
