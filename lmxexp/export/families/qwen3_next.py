"""Qwen3-Next: Gated DeltaNet and gated attention in turn, experts with a gated shared one."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lmxexp.export import parts, rotary
from lmxexp.export.experts import LLAMA_NAMES, expert_ties, silu_mixture
from lmxexp.export.families.mixtral import mixture_overrides, mixture_sizes, plainly_routed
from lmxexp.export.family import Tie, all_equal, is_exactly, require, standard_name
from lmxexp.export.state_space import renamed_with_convolutions
from lmxexp.model.attention.gate import OutputGate
from lmxexp.model.attention.gated_deltanet import GatedDeltaNet
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SoftmaxRouter
from lmxexp.model.ffn.shared_expert import GatedSharedExpert
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "Qwen3NextForCausalLM"
BUFFERS = r"^mtp\."  # predicts tokens further ahead; not part of the model that is loaded
DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "partial_rotary_factor": 0.25,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_chunk_size": 64,
    "norm_topk_prob": True,
    "router_aux_loss_coef": 0.001,
    "full_attention_interval": 4,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    softmax, linear, types = _mixers(layers)
    moes = [silu_mixture(layer.mlp, SoftmaxRouter, GatedSharedExpert) for layer in layers]
    norms = [model.norm, *parts.block_norms(layers), *parts.head_norms(softmax)]
    eps = parts.rms_eps(*norms, offset=1.0)
    require(all(m.norm_eps == eps for m in linear), "eps of the linear layers' norms is not that of the others")
    return {
        **parts.base_config(model),
        **parts.attention_sizes(softmax),
        **_linear_sizes(linear),
        **_moe_sizes(moes),
        **_interval(types),
        "layer_types": types,
        "rms_norm_eps": eps,
        "rope_parameters": all_equal((rotary.rope_parameters(m.position, partial=True) for m in softmax), "rope"),
        "attention_bias": parts.has_bias(*(p for m in softmax for p in (*parts.qkv(m), m.o_proj, _gate(m).g_proj))),
    }


def _mixers(layers: Sequence[Any]) -> tuple[list[GroupedQueryAttention], list[GatedDeltaNet], list[str]]:
    """Layers of either kind, of each at least one, and what each layer is called."""
    softmax, linear, types = [], [], []
    for mixer in (layer.self_attn for layer in layers):
        if isinstance(mixer, GatedDeltaNet):
            linear.append(mixer)
            types.append("linear_attention")
        else:
            softmax.append(parts.plain_attention(mixer, may_have=["gate"], qk_norm=True))
            _gate(softmax[-1])
            types.append("full_attention")
    require(softmax, "no layer has softmax attention")
    require(linear, "no layer has Gated DeltaNet")
    return softmax, linear, types


def _gate(mixer: GroupedQueryAttention) -> OutputGate:
    return is_exactly(mixer.gate, OutputGate, "the gate of attention")


def _linear_sizes(mixers: Sequence[GatedDeltaNet]) -> dict[str, Any]:
    require(
        not any("bias" in p for m in mixers for p in (m.in_proj_qkvz, m.in_proj_ba, m.out_proj)),
        "Gated DeltaNet has biases",
    )
    return {
        "linear_num_value_heads": all_equal((m.n_heads for m in mixers), "n_heads of the linear layers"),
        "linear_num_key_heads": all_equal((m.n_key_heads for m in mixers), "n_key_heads"),
        "linear_key_head_dim": all_equal((m.key_dim for m in mixers), "head_dim of the linear layers"),
        "linear_value_head_dim": all_equal((m.value_dim for m in mixers), "expand_v"),
        "linear_conv_kernel_dim": all_equal((m.conv1d.width for m in mixers), "conv_width"),
        "linear_chunk_size": all_equal((m.chunk for m in mixers), "chunk"),  # nobody else's: rounding depends on it
    }


def _moe_sizes(moes: Sequence[MixtureOfExperts]) -> dict[str, Any]:
    for moe in moes:
        plainly_routed(moe)
    d_expert = all_equal((m.d_expert for m in moes), "d_expert")
    n_shared = all_equal((m.n_shared for m in moes), "n_shared")
    sizes = mixture_sizes(list(moes))
    return {
        **sizes,
        "num_experts": all_equal((m.n_experts for m in moes), "n_experts"),
        "moe_intermediate_size": d_expert,
        "shared_expert_intermediate_size": n_shared * d_expert,
        "norm_topk_prob": all_equal((m.router.norm_topk_prob for m in moes), "norm_topk_prob"),
        "intermediate_size": (sizes["num_experts_per_tok"] + n_shared)
        * d_expert,  # of dense layers, of which there are none
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _interval(types: Sequence[str]) -> dict[str, int]:
    """``full_attention_interval``, for libraries that do not read ``layer_types``; nothing where layers are laid out
    otherwise."""
    interval = types.index("full_attention") + 1
    regular = all((t == "full_attention") == ((i + 1) % interval == 0) for i, t in enumerate(types))
    return {"full_attention_interval": interval} if regular else {}


def ties(model: LanguageModel) -> list[Tie]:
    special: list[Tie] = []
    for i, layer in enumerate(model.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        special += expert_ties(f"{ours}.mlp.experts", f"{theirs}.mlp.experts", layer.mlp.n_experts, LLAMA_NAMES)
        mixer = layer.self_attn
        if not isinstance(mixer, GatedDeltaNet):
            special += [
                _queries_and_gates(f"{ours}.self_attn", f"{theirs}.self_attn", array, mixer.n_heads)
                for array in ("weight", "bias")
                if array in mixer.q_proj
            ]
    linear = [i for i, layer in enumerate(model.layers) if isinstance(layer.self_attn, GatedDeltaNet)]
    tied = {name for tie in special for name in tie.ours}
    return special + renamed_with_convolutions(model, lambda ours: None if ours in tied else _name(ours, linear))


def _name(ours: str, linear: Sequence[int]) -> str:
    path = ours.split(".")
    if path[0] == "layers" and int(path[1]) in linear:
        ours = ours.replace("self_attn.", "linear_attn.")
    ours = ours.replace("mlp.router.gate.", "mlp.gate.")
    return standard_name(ours.replace("shared_expert.shared_expert_gate.", "shared_expert_gate."))


def _queries_and_gates(ours: str, theirs: str, array: str, n_heads: int) -> Tie:
    """Theirs are one matrix: a head's query, then its gate."""

    def join(q: mx.array, g: mx.array) -> tuple[mx.array]:
        q, g = (a.reshape(n_heads, -1, *a.shape[1:]) for a in (q, g))
        both = mx.concatenate([q, g], axis=1)
        return (both.reshape(-1, *both.shape[2:]),)

    def split(both: mx.array) -> tuple[mx.array, mx.array]:
        q, g = mx.split(both.reshape(n_heads, -1, *both.shape[1:]), 2, axis=1)
        return q.reshape(-1, *both.shape[1:]), g.reshape(-1, *both.shape[1:])

    return Tie((f"{ours}.q_proj.{array}", f"{ours}.gate.g_proj.{array}"), (f"{theirs}.q_proj.{array}",), join, split)


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(config, hidden_act="silu", decoder_sparse_step=1)
    require(not config.get("mlp_only_layers"), "some layers have no experts")
    interval = config["full_attention_interval"]
    default = [
        "linear_attention" if (i + 1) % interval else "full_attention" for i in range(config["num_hidden_layers"])
    ]
    types = config.get("layer_types") or default
    names = {"linear_attention": "linear", "full_attention": "layer"}
    require(set(types) <= set(names), f"layer_types has {', '.join(sorted(set(types) - set(names)))}")
    n_shared, rest = divmod(config["shared_expert_intermediate_size"], config["moe_intermediate_size"])
    require(not rest and n_shared, "the shared expert's width is no multiple of an expert's")
    eps = config["rms_norm_eps"]
    return [
        *parts.size_overrides("qwen3_next", config),
        *rotary.rope_overrides(rotary.read_rope(config)),
        parts.pattern_override(names[t] for t in types),
        f"model.linear.n_heads={config['linear_num_value_heads']}",
        f"model.linear.n_key_heads={config['linear_num_key_heads']}",
        f"model.linear.head_dim={config['linear_key_head_dim']}",
        f"model.linear.expand_v={config['linear_value_head_dim'] / config['linear_key_head_dim']}",
        f"model.linear.conv_width={config['linear_conv_kernel_dim']}",
        f"model.linear.chunk={config['linear_chunk_size']}",
        *mixture_overrides(config, config["num_experts"], config["moe_intermediate_size"]),
        f"model.ffn.n_shared={n_shared}",
        f"model.ffn.router.norm_topk_prob={config['norm_topk_prob']}",
        *(f"model.{entry}={eps}" for entry in ("norm.eps", "qk_norm.norm.eps", "linear.norm_eps")),
        f"model.bias={config['attention_bias']}",
        "model.linear.bias=false",
        "model.ffn.experts.bias=false",
        "model.ffn.shared.bias=false",
        parts.embedding_override(config),
    ]
