"""What families read of a model's parts, each in Hugging Face's terms."""

from typing import Any

import mlx.nn as nn

from lmxexp.export.family import InexpressibleError, all_equal, is_exactly, require
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.attention.reach import Full
from lmxexp.model.embedding.tied import TiedEmbedding
from lmxexp.model.embedding.untied import UntiedEmbedding
from lmxexp.model.language_model import LanguageModel
from lmxexp.model.norm.rmsnorm import RMSNorm
from lmxexp.model.position.rope import RoPE

ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu", "relu2": "relu2"}
"""Our names of activations to theirs."""


def base_config(model: LanguageModel) -> dict[str, Any]:
    """Sizes that every family states alike; refuses a model with parts that hardly any family has."""
    require(model.position_embedding is None, "there are position embeddings beside the tokens'")
    require(model.embedding_norm is None or isinstance(model.embedding_norm, nn.Identity), "embeddings are normalised")
    require(model.logit_softcap is None, "logits are soft-capped")
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


def rms_eps(*norms: Any, offset: float = 0.0) -> float:
    """The one ``eps`` of RMS norms that have a scale, and that offset."""
    for norm in norms:
        is_exactly(norm, RMSNorm, "a norm")
        require("weight" in norm and norm.offset == offset, f"an RMSNorm has no scale with offset {offset:g}")
    return all_equal((n.eps for n in norms), "eps of the norms")


def plain_attention(mixer: Any, *, reach: type = Full) -> GroupedQueryAttention:
    """The mixer, if it is softmax attention with nothing but projections, positions and that reach."""
    attention = is_exactly(mixer, GroupedQueryAttention, "a mixer")
    is_exactly(attention.reach, reach, "the reach of attention")
    for slot in ("gate", "sinks", "value_residual", "softcap"):
        require(getattr(attention, slot) is None, f"attention has {slot.replace('_', ' ')}")
    return attention


def rope_parameters(position: Any) -> dict[str, Any]:
    """``rope_parameters`` of a plain rotary position."""
    rope = is_exactly(position, RoPE, "the position")
    for knob, plain in {"fraction": 1.0, "interleaved": False, "scaling": None}.items():
        if getattr(rope, knob, plain) != plain:
            raise InexpressibleError(f"rope has {knob}={getattr(rope, knob)}")
    return {"rope_type": "default", "rope_theta": rope.theta}


def has_bias(*layers: Any) -> bool:
    """Whether the linear layers have biases, all or none."""
    return all_equal(("bias" in layer for layer in layers), "biases")
