"""gpt-oss: sinks, windows in some layers, clamped experts, biases everywhere."""

from typing import Any

import mlx.core as mx

from lmxexp.export import parts, rotary
from lmxexp.export.families.mixtral import mixture_overrides, mixture_sizes, plainly_routed
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.attention.sinks import Sinks
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.experts import ClampedExperts
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SoftmaxRouter
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "GptOssForCausalLM"
DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "sliding_window": 128,
    "rope_theta": 150000.0,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
    "swiglu_alpha": 1.702,
    "swiglu_limit": 7.0,
    "router_aux_loss_coef": 0.001,
}
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
"""What is taken where a file says nothing."""


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None, may_have=["sinks"], qk_norm=False) for layer in layers]
    for mixer in mixers:
        is_exactly(mixer.sinks, Sinks, "the sink of attention")
    moes = [_mixture(layer.mlp) for layer in layers]
    window, types = parts.one_window(mixers)
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **mixture_sizes(moes),
        "intermediate_size": all_equal((moe.d_expert for moe in moes), "d_expert"),
        "num_local_experts": all_equal((moe.n_experts for moe in moes), "n_experts"),
        "swiglu_alpha": all_equal((moe.experts.alpha for moe in moes), "alpha of the experts"),
        "swiglu_limit": all_equal((moe.experts.limit for moe in moes), "limit of the experts"),
        "sliding_window": window or DEFAULTS["sliding_window"],  # it has to be there even if no layer reads it
        "layer_types": types,
        "rms_norm_eps": parts.rms_eps(model.norm, *parts.block_norms(layers)),
        "rope_parameters": all_equal((rotary.rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    def name(ours: str) -> str | None:
        if ".experts." in ours:
            return None
        return standard_name(ours).replace(".mlp.router.gate.", ".mlp.router.").replace(".sinks.weight", ".sinks")

    return [tie for i in range(len(model.layers)) for tie in _expert_ties(i)] + renamed(model, name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu", quantization_config=None)
    if not (config.get("rope_parameters") or config.get("rope_scaling")):
        config["rope_parameters"] = {**YARN, "rope_theta": config["rope_theta"]}
    n_layers = config["num_hidden_layers"]
    every_other = ["full_attention" if i % 2 else "sliding_attention" for i in range(n_layers)]
    return [
        *parts.size_overrides("gpt_oss", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        *parts.local_overrides(config, every_other),
        *mixture_overrides(config, config["num_local_experts"], config["intermediate_size"]),
        f"model.ffn.experts.alpha={config['swiglu_alpha']}",
        f"model.ffn.experts.limit={config['swiglu_limit']}",
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.bias={config['attention_bias']}",
        parts.embedding_override(config),
    ]


def _mixture(ffn: Any) -> MixtureOfExperts:
    """The feed-forward, if it is clamped experts with biases behind a softmax."""
    moe = is_exactly(ffn, MixtureOfExperts, "the feed-forward")
    experts = is_exactly(moe.experts, ClampedExperts, "the experts")
    router = is_exactly(moe.router, SoftmaxRouter, "the router")
    require(parts.has_bias(*parts.three(experts), router.gate), "the feed-forward has no biases")
    require(moe.shared_expert is None, "there is a shared expert")
    require(router.norm_topk_prob, "weights of experts are not normalised")
    plainly_routed(moe)
    return moe


def _expert_ties(i: int) -> list[Tie]:
    """Theirs are one array for all experts too, inputs first; elements of gate and up take turns."""
    ours, theirs = f"layers.{i}.mlp.experts", f"model.layers.{i}.mlp.experts"

    def shuffle(gate: mx.array, up: mx.array) -> mx.array:
        """``(…, F), (…, F) -> (…, 2 F)``."""
        return mx.stack([gate, up], axis=-1).flatten(-2)

    return [
        Tie(
            (f"{ours}.gate_proj.weight", f"{ours}.up_proj.weight"),
            (f"{theirs}.gate_up_proj",),
            lambda gate, up: (shuffle(gate.swapaxes(1, 2), up.swapaxes(1, 2)),),
            lambda both: (both[..., ::2].swapaxes(1, 2), both[..., 1::2].swapaxes(1, 2)),
        ),
        Tie(
            (f"{ours}.gate_proj.bias", f"{ours}.up_proj.bias"),
            (f"{theirs}.gate_up_proj_bias",),
            lambda gate, up: (shuffle(gate, up),),
            lambda both: (both[..., ::2], both[..., 1::2]),
        ),
        Tie(
            (f"{ours}.down_proj.weight",),
            (f"{theirs}.down_proj",),
            lambda a: (a.swapaxes(1, 2),),
            lambda a: (a.swapaxes(1, 2),),
        ),
        Tie((f"{ours}.down_proj.bias",), (f"{theirs}.down_proj_bias",), lambda a: (a,), lambda a: (a,)),
    ]
