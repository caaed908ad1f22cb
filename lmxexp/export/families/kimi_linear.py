"""Kimi Linear: Kimi Delta Attention and latent attention without positions in turn, experts after dense layers."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from lmxexp.export import parts
from lmxexp.export.experts import NUMBERED_NAMES, expert_ties, silu_mixture
from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.model.attention.decay import ForgetGate
from lmxexp.model.attention.delta import DeltaNet
from lmxexp.model.attention.linear_gate import LowRankGate
from lmxexp.model.attention.mla import MultiHeadLatentAttention
from lmxexp.model.attention.reach import Full
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.ffn.moe import MixtureOfExperts
from lmxexp.model.ffn.router import SigmoidRouter
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "KimiLinearForCausalLM"
# transformers 5 writes dense layers under the name of mixtures, which the published checkpoint keeps for these.
ALIASES = ((r"\.block_sparse_moe\.(gate_proj|up_proj|down_proj)\.", r".mlp.\1."),)
# transformers takes 1e-6 for the norms of latents whatever `rms_norm_eps` is.
_LATENT_EPS = 1e-6
DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "q_lora_rank": None,
    "num_shared_experts": 1,
    "moe_renormalize": True,
    "routed_scaling_factor": 2.446,
    "num_expert_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def config(model: LanguageModel) -> dict[str, Any]:
    layers = parts.layers_of(model, PreNorm)
    latent = [_latent_attention(m.self_attn) for m in layers if not isinstance(m.self_attn, DeltaNet)]
    linear = [_delta_attention(m.self_attn) for m in layers if isinstance(m.self_attn, DeltaNet)]
    require(latent, "no layer has latent attention")
    require(linear, "no layer has Kimi Delta Attention")
    eps = parts.rms_eps(model.norm, *parts.block_norms(layers))
    require(all(m.norm_eps == eps for m in linear), "eps of the linear layers' norms is not that of the others")
    n_dense = next((i for i, layer in enumerate(layers) if isinstance(layer.mlp, MixtureOfExperts)), len(layers))
    require(n_dense < len(layers), "no layer has experts")
    n_heads = all_equal((m.n_heads for m in latent), "n_heads")
    head_dim = all_equal((m.head_dim for m in latent), "head_dim")
    numbers = range(1, len(layers) + 1)
    return {
        **parts.base_config(model),
        **_moe_sizes([silu_mixture(layer.mlp, SigmoidRouter, GatedLinearUnit) for layer in layers[n_dense:]]),
        **_dense_sizes([layer.mlp for layer in layers[:n_dense]], layers[n_dense].mlp),
        "first_k_dense_replace": n_dense,
        "moe_layer_freq": 1,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "head_dim": head_dim,
        "qk_nope_head_dim": head_dim,
        "qk_rope_head_dim": all_equal((m.rope_dim for m in latent), "rope_dim"),
        "v_head_dim": all_equal((m.v_dim for m in latent), "v_dim"),
        "kv_lora_rank": all_equal((m.kv_rank for m in latent), "kv_rank"),
        "q_lora_rank": all_equal((m.q_rank for m in latent), "q_rank") or None,
        "attention_dropout": all_equal((m.dropout for m in latent), "dropout"),
        "attention_bias": parts.has_bias(*(p for m in latent for p in (m.kv_a_proj_with_mqa, m.o_proj))),
        "mla_use_nope": True,
        "linear_attn_config": {
            "num_heads": all_equal((m.n_heads for m in linear), "n_heads of the linear layers"),
            "head_dim": all_equal((m.head_dim for m in linear), "head_dim of the linear layers"),
            "short_conv_kernel_size": all_equal((m.conv1d.width for m in linear), "conv_width"),
            "chunk_size": all_equal((m.chunk for m in linear), "chunk"),  # nobody else's: rounding depends on it
            "kda_layers": [
                n for n, layer in zip(numbers, layers, strict=True) if isinstance(layer.self_attn, DeltaNet)
            ],
            "full_attn_layers": [
                n for n, layer in zip(numbers, layers, strict=True) if not isinstance(layer.self_attn, DeltaNet)
            ],
        },
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        # Libraries want numbers for the positions that there are none of.
        "rope_theta": 10000.0,
        "model_max_length": 1048576,
    }


def _latent_attention(mixer: Any) -> MultiHeadLatentAttention:
    mla = is_exactly(mixer, MultiHeadLatentAttention, "a mixer")
    require(mla.position is None, "latent attention has positions")
    require(mla.softcap is None, "attention has softcap")
    is_exactly(mla.reach, Full, "the reach of attention")
    norms = [mla.kv_a_layernorm, *([mla.q_a_layernorm] if mla.q_rank else [])]
    require(parts.rms_eps(*norms) == _LATENT_EPS, f"eps of the latents' norms is not {_LATENT_EPS:g}")
    return mla


def _delta_attention(mixer: Any) -> DeltaNet:
    kda = is_exactly(mixer, DeltaNet, "a mixer")
    decay = is_exactly(kda.decay, ForgetGate, "the decay of the delta rule")
    gate = is_exactly(kda.gate, LowRankGate, "the gate of the delta rule")
    require(decay.rank == gate.rank == kda.head_dim, "ranks of decay and gate are not head_dim")
    projections = [*parts.qkv(kda), kda.b_proj, kda.o_proj, gate.g_b_proj]
    require(not any("bias" in p for p in projections), "Kimi Delta Attention has biases")
    return kda


def _moe_sizes(moes: Sequence[MixtureOfExperts]) -> dict[str, Any]:
    require(all(m.router.bias_rate is not None for m in moes), "routers have no bias on the choice")
    return {
        "num_experts": all_equal((m.n_experts for m in moes), "n_experts"),
        "num_experts_per_token": all_equal((m.top_k for m in moes), "top_k"),
        "moe_intermediate_size": all_equal((m.d_expert for m in moes), "d_expert"),
        "num_shared_experts": all_equal((m.n_shared for m in moes), "n_shared"),
        "moe_renormalize": all_equal((m.router.norm_topk_prob for m in moes), "norm_topk_prob"),
        "routed_scaling_factor": all_equal((m.router.scale for m in moes), "the routers' scale"),
        "num_expert_group": all_equal((m.router.n_groups for m in moes), "n_groups"),
        "topk_group": all_equal((m.router.topk_groups for m in moes), "topk_groups"),
        "moe_router_activation_func": "sigmoid",
        "use_grouped_topk": True,
    }


def _dense_sizes(ffns: Sequence[Any], moe: MixtureOfExperts) -> dict[str, Any]:
    """The dense layers' width; without any, what a token meets of the experts."""
    for ffn in ffns:
        unit = is_exactly(ffn, GatedLinearUnit, "a feed-forward before the experts")
        require(unit.activation_name == "silu", f"its activation is {unit.activation_name}")
        require(not parts.has_bias(*parts.three(unit)), "the feed-forward has biases")
    width = all_equal((f.d_ff for f in ffns), "d_ff") if ffns else (moe.top_k + moe.n_shared) * moe.d_expert
    return {"intermediate_size": width}


def ties(model: LanguageModel) -> list[Tie]:
    special: list[Tie] = []
    for i, layer in enumerate(model.layers):
        ours, theirs = f"layers.{i}", f"model.layers.{i}"
        if isinstance(layer.mlp, MixtureOfExperts):
            experts = f"{theirs}.block_sparse_moe.experts"
            special += expert_ties(f"{ours}.mlp.experts", experts, layer.mlp.n_experts, NUMBERED_NAMES)
        if isinstance(layer.self_attn, DeltaNet):
            special += _delta_ties(f"{ours}.self_attn", f"{theirs}.self_attn")
    tied = {name for tie in special for name in tie.ours}
    mixtures = [i for i, layer in enumerate(model.layers) if isinstance(layer.mlp, MixtureOfExperts)]
    return special + renamed(model, lambda ours: None if ours in tied else _name(ours, mixtures))


def _delta_ties(ours: str, theirs: str) -> list[Tie]:
    """Theirs have one convolution each for queries, keys and values, and axes of length one."""

    def apart(a: mx.array) -> tuple[mx.array, ...]:
        return tuple(mx.split(a[:, None], 3, axis=0))

    def together(*single: mx.array) -> tuple[mx.array, ...]:
        return (mx.concatenate(list(single), axis=0)[:, 0],)

    return [
        Tie((f"{ours}.conv1d.weight",), tuple(f"{theirs}.{n}_conv1d.weight" for n in "qkv"), apart, together),
        Tie(
            (f"{ours}.decay.A_log",),
            (f"{theirs}.A_log",),
            lambda a: (a.reshape(1, 1, -1, 1),),
            lambda a: (a.reshape(-1),),
        ),
    ]


def _name(ours: str, mixtures: Sequence[int]) -> str:
    path = ours.split(".")
    if path[0] == "layers" and int(path[1]) in mixtures:
        for mine, their in {
            "mlp.router.gate.": "block_sparse_moe.gate.",
            "mlp.router.": "block_sparse_moe.gate.",
            "mlp.shared_expert.": "block_sparse_moe.shared_experts.",
        }.items():
            ours = ours.replace(mine, their)
    return standard_name(ours.replace("self_attn.decay.", "self_attn.").replace("self_attn.gate.", "self_attn."))


def overrides(config: dict[str, Any]) -> list[str]:
    config = {**DEFAULTS, **config}
    parts.require_values(
        config, hidden_act="silu", moe_layer_freq=1, moe_router_activation_func="sigmoid", mla_use_nope=True
    )
    require("linear_attn_config" in config, "there is no linear_attn_config")
    linear = config["linear_attn_config"]
    n_layers, n_dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    kda, full = set(linear["kda_layers"]), set(linear["full_attn_layers"])
    require(kda | full == set(range(1, n_layers + 1)) and not kda & full, "linear_attn_config leaves layers open")
    names = [
        ("dense_linear" if n in kda else "dense") if n <= n_dense else ("linear" if n in kda else "layer")
        for n in range(1, n_layers + 1)
    ]
    eps = config["rms_norm_eps"]
    return [
        *parts.size_overrides("kimi_linear", {**config, "head_dim": config["qk_nope_head_dim"]}),
        parts.pattern_override(names),
        f"model.attention.rope_dim={config['qk_rope_head_dim']}",
        f"model.attention.v_dim={config['v_head_dim']}",
        f"model.attention.kv_rank={config['kv_lora_rank']}",
        f"model.attention.q_rank={config['q_lora_rank'] or 0}",
        f"model.linear.n_heads={linear['num_heads']}",
        f"model.linear.head_dim={linear['head_dim']}",
        f"model.linear.conv_width={linear.get('short_conv_kernel_size', 4)}",
        f"model.linear.chunk={linear.get('chunk_size', 64)}",
        f"model.ffn.n_experts={config['num_experts']}",
        f"model.ffn.top_k={config['num_experts_per_token']}",
        f"model.ffn.d_expert={config['moe_intermediate_size']}",
        f"model.ffn.n_shared={config['num_shared_experts']}",
        f"model.ffn.router.norm_topk_prob={config['moe_renormalize']}",
        f"model.ffn.router.scale={config['routed_scaling_factor']}",
        f"model.ffn.router.n_groups={config['num_expert_group']}",
        f"model.ffn.router.topk_groups={config['topk_group']}",
        f"model.norm.eps={eps}",
        f"model.linear.norm_eps={eps}",
        f"model.bias={config['attention_bias']}",
        "model.linear.bias=false",
        "model.dense.bias=false",
        "model.ffn.experts.bias=false",
        "model.ffn.shared.bias=false",
        parts.embedding_override(config),
    ]
