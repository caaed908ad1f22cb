"""The text part of Llama 4: chunks in most layers, experts in some."""

import copy
from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from lmxexp.export import parts, rotary
from lmxexp.export.families.mixtral import mixture_overrides, mixture_sizes
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.attention.reach import Chunk, Full
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.experts import GatedExperts
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SigmoidRouter
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.position.rope import RoPE
from lmxexp.model.position.temperature import Temperature

ARCHITECTURE = "Llama4ForCausalLM"
MODEL_TYPE = "llama4_text"
DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_local_experts": 16,
    "num_experts_per_tok": 1,
    "router_aux_loss_coef": 0.001,
    "moe_layers": None,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "layer_types": None,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    mixers = [parts.plain_attention(layer.self_attn, reach=None) for layer in layers]
    in_chunks = [type(m.reach) is Chunk for m in mixers]
    chunked = [m for m, c in zip(mixers, in_chunks, strict=True) if c]
    whole = [m for m, c in zip(mixers, in_chunks, strict=True) if not c]
    require(chunked, "no layer has chunks")
    for mixer in whole:
        is_exactly(mixer.reach, Full, "the reach of attention")
        require(mixer.q_norm is None, "queries and keys are normalised in layers without chunks")
    with_experts = [type(layer.mlp) is MixtureOfExperts for layer in layers]
    require(any(with_experts), "no layer has experts")
    moes = [_mixture(layer.mlp) for layer, e in zip(layers, with_experts, strict=True) if e]
    dense = parts.gated_ffns(layer for layer, e in zip(layers, with_experts, strict=True) if not e)
    if dense:
        require(not parts.has_bias(*(p for ffn in dense for p in parts.three(ffn))), "the feed-forward has biases")
        require(all(ffn.activation_name == "silu" for ffn in dense), "the activation is not silu")
    d_expert = all_equal((moe.d_expert for moe in moes), "d_expert")
    eps = parts.rms_eps(model.norm, *parts.block_norms(layers))
    use_qk_norm = all_equal((m.q_norm is not None for m in chunked), "whether queries and keys are normalised")
    if use_qk_norm:
        norms = parts.head_norms(chunked)
        require(parts.rms_eps(*norms, scaled=False) == eps, "eps of the norms of queries and keys is another")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(mixers),
        **mixture_sizes(moes),
        "intermediate_size": d_expert,
        "intermediate_size_mlp": all_equal((f.d_ff for f in dense), "d_ff") if dense else 2 * d_expert,
        "num_local_experts": all_equal((moe.n_experts for moe in moes), "n_experts"),
        "moe_layers": [i for i, e in enumerate(with_experts) if e],
        "use_qk_norm": use_qk_norm,
        "no_rope_layers": [int(c) for c in in_chunks],
        "layer_types": ["chunked_attention" if c else "full_attention" for c in in_chunks],
        "attention_chunk_size": all_equal((_chunk(m) for m in chunked), "the chunk"),
        **_temperature(whole),
        "rms_norm_eps": eps,
        "rope_parameters": all_equal((_rope(m.position) for m in chunked), "rope"),
        "attention_bias": parts.has_bias(*(p for m in mixers for p in (*parts.qkv(m), m.o_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    def name(ours: str) -> str | None:
        if ".mlp.experts." in ours:
            return None
        return standard_name(ours).replace(".mlp.router.gate.", ".mlp.router.").replace(".mlp.", ".feed_forward.")

    mixtures = [i for i, layer in enumerate(model.layers) if isinstance(layer.mlp, MixtureOfExperts)]
    return [tie for i in mixtures for tie in _expert_ties(i, model.layers[i].mlp.d_expert)] + renamed(model, name)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu", quantization_config=None)
    n, every, step = (config[k] for k in ("num_hidden_layers", "no_rope_layer_interval", "interleave_moe_layer_step"))
    rotated = config["no_rope_layers"] or [int((i + 1) % every != 0) for i in range(n)]
    chunked = [kind == "chunked_attention" for kind in config["layer_types"] or []] or [bool(r) for r in rotated]
    require(chunked == [bool(r) for r in rotated], "layers with chunks are not those with rotary positions")
    with_experts = config["moe_layers"] if config["moe_layers"] is not None else range(step - 1, n, step)
    names = [("local" if chunked[i] else "layer") + ("" if i in with_experts else "_dense") for i in range(n)]
    tuned = ["floor_scale", "attn_scale"] if config["attn_temperature_tuning"] else []
    eps = config["rms_norm_eps"]
    return [
        *parts.size_overrides("llama4", {**config, "intermediate_size": config["intermediate_size_mlp"]}),
        parts.pattern_override(names),
        *rotary.rope_overrides(rotary.read_rope(config)),
        "model.position.attention.interleaved=true",
        f"model.local.reach.chunk={config['attention_chunk_size']}",
        *([] if tuned else ["position@model.global_position=none"]),
        *(f"model.global_position.attention.{key}={config[key]}" for key in tuned),
        *mixture_overrides(config, config["num_local_experts"], config["intermediate_size"]),
        f"model.norm.eps={eps}",
        *([f"model.qk_norm.norm.eps={eps}"] if config["use_qk_norm"] else ["qk_norm=none"]),
        f"model.bias={config['attention_bias']}",
        *(f"model.{node}.bias=false" for node in ("ffn.experts", "ffn.shared", "dense")),
        parts.embedding_override(config),
    ]


def _mixture(ffn: Any) -> MixtureOfExperts:
    """The feed-forward, if it is SwiGLU experts with weighted inputs and one shared, without biases."""
    moe = is_exactly(ffn, MixtureOfExperts, "the feed-forward")
    experts = is_exactly(moe.experts, GatedExperts, "the experts")
    router = is_exactly(moe.router, SigmoidRouter, "the router")
    shared = is_exactly(moe.shared_expert, GatedLinearUnit, "the shared expert")
    require(not parts.has_bias(*parts.three(experts), *parts.three(shared), router.gate), "there are biases")
    names = {experts.activation_name, shared.activation_name}
    require(names == {"silu"}, f"activations are {', '.join(sorted(names))}")
    require(moe.n_shared == 1, f"the shared expert is as wide as {moe.n_shared} others")
    require(moe.weigh == "input", "routing weights multiply what experts give")
    require(not router.norm_topk_prob, "weights of experts are normalised")
    require(router.scale == 1.0, f"routing weights are scaled by {router.scale:g}")
    require(router.n_groups == 1, f"experts are chosen in n_groups={router.n_groups}")
    require(router.bias_rate is None, "a bias corrects the choice of experts")
    return moe


def _chunk(mixer: GroupedQueryAttention) -> int:
    return is_exactly(mixer.reach, Chunk, "the reach of attention").chunk


def _rope(position: Any) -> dict[str, Any]:
    """``rope_parameters``, in which this family does not say that it pairs neighbours."""
    rope = is_exactly(position, RoPE, "the position")
    require(rope.interleaved, "rope pairs elements half a head apart")
    rope = copy.copy(rope)
    rope.interleaved = False
    return rotary.rope_parameters(rope)


def _temperature(mixers: Iterable[GroupedQueryAttention]) -> dict[str, Any]:
    """How layers without chunks grow sharper with the position, if they do."""
    positions = [m.position for m in mixers]
    if all(p is None for p in positions):
        return {"attn_temperature_tuning": False}
    found = [is_exactly(p, Temperature, "the position of layers without chunks") for p in positions]
    return {
        "attn_temperature_tuning": True,
        "floor_scale": all_equal((p.floor_scale for p in found), "floor_scale"),
        "attn_scale": all_equal((p.attn_scale for p in found), "attn_scale"),
    }


def _expert_ties(i: int, d_expert: int) -> list[Tie]:
    """Theirs are one array for all experts too, inputs first; gate and up side by side."""
    ours, theirs = f"layers.{i}.mlp.experts", f"model.layers.{i}.feed_forward.experts"
    return [
        Tie(
            (f"{ours}.gate_proj.weight", f"{ours}.up_proj.weight"),
            (f"{theirs}.gate_up_proj",),
            lambda gate, up: (mx.concatenate([gate.swapaxes(1, 2), up.swapaxes(1, 2)], axis=-1),),
            lambda both: (both[..., :d_expert].swapaxes(1, 2), both[..., d_expert:].swapaxes(1, 2)),
        ),
        Tie(
            (f"{ours}.down_proj.weight",),
            (f"{theirs}.down_proj",),
            lambda a: (a.swapaxes(1, 2),),
            lambda a: (a.swapaxes(1, 2),),
        ),
    ]
