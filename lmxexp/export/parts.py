"""What families read of a model's parts, each in Hugging Face's terms, and the overrides that say the same in ours."""

from collections.abc import Iterable, Sequence
from typing import Any

import mlx.nn as nn

from lmxexp.export.family import all_equal, is_exactly, require
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.attention.reach import Full, Window
from lmxexp.model.embedding.tied import TiedEmbedding
from lmxexp.model.embedding.untied import UntiedEmbedding
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.norm.rmsnorm import RMSNorm
from lmxexp.model.softcap.tanh import TanhSoftcap

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
"""Our names of activations to theirs."""


# --- the model --------------------------------------------------------------------------------------------------------


def base_config(
    model: LanguageModel,
    *,
    embedding_scale: float = 1.0,
    normed_embedding: bool = False,
    capped_logits: bool = False,
    embedded_positions: bool = False,
) -> dict[str, Any]:
    """Sizes that every family states alike; refuses a model with parts that hardly any family has.

    The arguments say which of those parts the family has; it then reads them itself.
    """
    if not embedded_positions:
        require(model.position_embedding is None, "there are position embeddings beside the tokens'")
    if not normed_embedding:
        absent = model.embedding_norm is None or isinstance(model.embedding_norm, nn.Identity)
        require(absent, "embeddings are normalised")
    if not capped_logits:
        require(model.logit_softcap is None, "logits are soft-capped")
    require(not model.ahead, "there are modules that predict tokens beyond the next")
    scale = getattr(model.embedding, "scale", 1.0)
    require(scale == embedding_scale, f"embeddings are multiplied by {scale:g}, not {embedding_scale:g}")
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": len(model.layers),
        "tie_word_embeddings": tied(model),
    }


def tied(model: LanguageModel) -> bool:
    """Whether embedding and head are one matrix."""
    if type(model.embedding) is TiedEmbedding:
        return True
    is_exactly(model.embedding, UntiedEmbedding, "the embedding")
    return False


def layers_of(model: LanguageModel, block: type) -> list[Any]:
    """The layers, if all are blocks of that class with a mixer and a feed-forward."""
    layers = [is_exactly(layer, block, "the block") for layer in model.layers]
    require(all(layer.self_attn is not None and layer.mlp is not None for layer in layers), "a layer lacks a sublayer")
    return layers


def gated_ffns(layers: Iterable[Any]) -> list[GatedLinearUnit]:
    """The feed-forwards, if all are gated linear units."""
    return [is_exactly(layer.mlp, GatedLinearUnit, "the feed-forward") for layer in layers]


def block_norms(layers: Iterable[Any]) -> list[Any]:
    """The norms that the blocks' placement has."""
    return [part for layer in layers for name, part in layer.children().items() if name.endswith("layernorm")]


# --- norms ------------------------------------------------------------------------------------------------------------


def rms_eps(*norms: Any, offset: float = 0.0, scaled: bool = True) -> float:
    """The one ``eps`` of RMS norms with that offset, with a scale or without."""
    for norm in norms:
        is_exactly(norm, RMSNorm, "a norm")
        require(("weight" in norm) == scaled, f"an RMSNorm has {'no' if scaled else 'a'} scale")
        require(norm.offset == offset, f"the scale of an RMSNorm has offset {norm.offset:g}, not {offset:g}")
    return all_equal((n.eps for n in norms), "eps of the norms")


def head_norms(mixers: Iterable[GroupedQueryAttention], kind: type = RMSNorm) -> list[Any]:
    """The norms of queries and of keys, if all attention has them and they are of that class."""
    return [is_exactly(norm, kind, "the norm of queries and keys") for m in mixers for norm in (m.q_norm, m.k_norm)]


# --- attention --------------------------------------------------------------------------------------------------------


def plain_attention(
    mixer: Any,
    *,
    reach: type | None = Full,
    may_have: Iterable[str] = (),
    qk_norm: bool | None = None,
    own_scale: bool = False,
) -> GroupedQueryAttention:
    """The mixer, if it is softmax attention with nothing but projections and positions.

    Args:
        reach: how far it has to see; None: the caller looks for itself.
        may_have: slots that may be filled, for the caller to read: gate, sinks, value_residual, softcap.
        qk_norm: whether queries and keys have to be normalised; None: the caller looks for itself.
        own_scale: whether the scores may be scaled by another number than ``head_dim ** -0.5``.
    """
    attention = is_exactly(mixer, GroupedQueryAttention, "a mixer")
    if reach is not None:
        is_exactly(attention.reach, reach, "the reach of attention")
    for slot in {"gate", "sinks", "value_residual", "softcap"} - set(may_have):
        require(getattr(attention, slot) is None, f"attention has {slot.replace('_', ' ')}")
    plain_scale = attention.scale == attention.head_dim**-0.5
    require(own_scale or plain_scale, f"scores are scaled by {attention.scale:g}, not head_dim ** -0.5")
    if qk_norm is not None:
        have = attention.q_norm is not None
        require(have == qk_norm, f"queries and keys are {'' if have else 'not '}normalised")
    return attention


def attention_sizes(mixers: Sequence[Any]) -> dict[str, Any]:
    """Head counts and width."""
    return {
        "num_attention_heads": all_equal((m.n_heads for m in mixers), "n_heads"),
        "num_key_value_heads": all_equal((m.n_kv_heads for m in mixers), "n_kv_heads"),
        "head_dim": all_equal((m.head_dim for m in mixers), "head_dim"),
        "attention_dropout": all_equal((m.dropout for m in mixers), "dropout"),
    }


def ffn_sizes(ffns: Sequence[Any], activation_key: str = "hidden_act") -> dict[str, Any]:
    """Hidden width and activation."""
    return {
        "intermediate_size": all_equal((f.d_ff for f in ffns), "d_ff"),
        activation_key: ACTIVATIONS[all_equal((f.activation_name for f in ffns), "the activation")],
    }


def windows(mixers: Iterable[GroupedQueryAttention]) -> list[int | None]:
    """How many positions each layer sees; None: all."""
    return [None if type(m.reach) is Full else is_exactly(m.reach, Window, "the reach").window for m in mixers]


def one_window(mixers: Iterable[GroupedQueryAttention]) -> tuple[int | None, list[str]]:
    """The window of those layers that have one, and what each layer is in ``layer_types``."""
    found = windows(mixers)
    window = all_equal([w for w in found if w is not None] or [None], "the window")
    return window, ["full_attention" if w is None else "sliding_attention" for w in found]


def has_bias(*layers: Any) -> bool:
    """Whether the linear layers have biases, all or none."""
    return all_equal(("bias" in layer for layer in layers), "whether there are biases")


def qkv(mixer: Any) -> list[nn.Linear]:
    """The projections to queries, keys and values."""
    return [mixer.q_proj, mixer.k_proj, mixer.v_proj]


def three(ffn: Any) -> list[nn.Linear]:
    """The layers of a gated linear unit."""
    return [ffn.gate_proj, ffn.up_proj, ffn.down_proj]


def cap(softcap: Any) -> float | None:
    """The cap of a soft cap; None where there is none."""
    return None if softcap is None else is_exactly(softcap, TanhSoftcap, "a soft cap").cap


def query_pre_attn_scalar(mixers: Iterable[GroupedQueryAttention]) -> int:
    """The whole number whose inverse root the scores are multiplied by."""
    scale = all_equal((m.scale for m in mixers), "the scale of scores")
    number = round(scale**-2)
    require(abs(number**-0.5 / scale - 1) < 1e-6, f"scores are scaled by {scale:g}, no inverse root of a whole number")
    return number


def qwen_window(mixers: Sequence[GroupedQueryAttention]) -> dict[str, Any]:
    """The window in the words of the Qwen families; in all layers or in none."""
    window = all_equal(windows(mixers), "the window")
    if window is None:
        return {"use_sliding_window": False}
    # The first max_window_layers layers are those *without* a window.
    types = ["sliding_attention"] * len(mixers)
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0, "layer_types": types}


# --- a configuration --------------------------------------------------------------------------------------------------


def size_overrides(preset: str, config: dict[str, Any]) -> list[str]:
    """The preset in the sizes of a ``config.json`` in which nothing is missing."""
    n_heads = config["num_attention_heads"]
    sizes = {
        "d_model": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": config.get("num_key_value_heads") or n_heads,
        "head_dim": config.get("head_dim") or config["hidden_size"] // n_heads,
        "d_ff": config["intermediate_size"],
    }
    return [f"model={preset}", *(f"model.{key}={value}" for key, value in sizes.items())]


def pattern_override(names: Iterable[str]) -> str:
    """The stack, layer by layer, as names of the preset's blocks."""
    return f"model.net.pattern={{first: [], repeat: [{','.join(names)}], last: []}}"


def layer_types(config: dict[str, Any], default: Iterable[str]) -> list[str]:
    """``layer_types``, or what the family takes where the file does not say; of two kinds alone."""
    types = list(config.get("layer_types") or default)
    known = {"full_attention", "sliding_attention"}
    require(set(types) <= known, f"layer_types has {', '.join(sorted(set(types) - known))}")
    return types


def window_overrides(window: int | None) -> list[str]:
    """Attention with that window in all layers, or without one."""
    return ["attention=gqa"] if window is None else ["attention=sliding", f"model.attention.reach.window={window}"]


def read_qwen_window(config: dict[str, Any]) -> int | None:
    """The window of all layers."""
    n, without = config["num_hidden_layers"], config.get("max_window_layers", 28)
    if not config.get("use_sliding_window", False):
        return None
    default = ["full_attention" if i < without else "sliding_attention" for i in range(n)]
    return all_equal(
        (config["sliding_window"] if t == "sliding_attention" else None for t in layer_types(config, default)),
        "the window",
    )


def local_overrides(config: dict[str, Any], default: Iterable[str]) -> list[str]:
    """Layers with a window, the preset's blocks ``local``, among such without, its blocks ``layer``."""
    types = layer_types(config, default)
    names = [{"sliding_attention": "local", "full_attention": "layer"}[t] for t in types]
    window = config["sliding_window"] if "local" in names else None
    return [pattern_override(names), *([f"model.local.reach.window={window}"] if window else [])]


def score_scale_overrides(query_pre_attn_scalar: float, config: dict[str, Any]) -> list[str]:
    """The factor on the scores, of layers with and without a window."""
    if query_pre_attn_scalar == config["head_dim"]:
        return []
    return [f"model.{entry}.scale={query_pre_attn_scalar**-0.5}" for entry in ("attention", "local")]


def cap_overrides(entry: str, value: float | None) -> list[str]:
    """The soft cap in a palette entry."""
    group = f"softcap@model.{entry}"
    return [f"{group}=none"] if value is None else [f"{group}=tanh", f"model.{entry}.cap={value}"]


def embedding_override(config: dict[str, Any], tied: str = "tied") -> str:
    return f"embedding={tied if config['tie_word_embeddings'] else 'untied'}"


def require_values(config: dict[str, Any], **values: Any) -> None:
    """Refuse a configuration in which one of these has another value; a missing one is as it should be."""
    for key, value in values.items():
        found = config.get(key, value)
        require(found == value, f"{key} is {found}, not {value}")
