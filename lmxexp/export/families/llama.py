"""Llama 2 and 3 without rope scaling, and what is built like them."""

from typing import Any

from lmxexp.export.family import Tie, all_equal, is_exactly, renamed, require, standard_name
from lmxexp.export.parts import ACTIVATIONS, base_config, has_bias, plain_attention, rms_eps, rope_parameters
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.language_model import LanguageModel

ARCHITECTURE = "LlamaForCausalLM"


def config(model: LanguageModel) -> dict[str, Any]:
    layers = [is_exactly(layer, PreNorm, "the block") for layer in model.layers]
    mixers = [plain_attention(layer.self_attn) for layer in layers]
    ffns = [is_exactly(layer.mlp, GatedLinearUnit, "the feed-forward") for layer in layers]
    require(all(m.q_norm is None for m in mixers), "queries and keys are normalised")
    return {
        **base_config(model),
        "num_attention_heads": all_equal((m.n_heads for m in mixers), "n_heads"),
        "num_key_value_heads": all_equal((m.n_kv_heads for m in mixers), "n_kv_heads"),
        "head_dim": all_equal((m.head_dim for m in mixers), "head_dim"),
        "intermediate_size": all_equal((f.d_ff for f in ffns), "d_ff"),
        "hidden_act": ACTIVATIONS[all_equal((f.activation_name for f in ffns), "the activation")],
        "rms_norm_eps": rms_eps(
            model.norm, *(n for layer in layers for n in (layer.input_layernorm, layer.post_attention_layernorm))
        ),
        "rope_parameters": all_equal((rope_parameters(m.position) for m in mixers), "rope"),
        "attention_bias": has_bias(*(p for m in mixers for p in (m.q_proj, m.k_proj, m.v_proj, m.o_proj))),
        "mlp_bias": has_bias(*(p for f in ffns for p in (f.gate_proj, f.up_proj, f.down_proj))),
    }


def ties(model: LanguageModel) -> list[Tie]:
    return renamed(model, standard_name)


def overrides(config: dict[str, Any]) -> list[str]:
    require(config["hidden_act"] == "silu", f"hidden_act is {config['hidden_act']}")
    rope = config["rope_parameters"]
    require(rope.get("rope_type", "default") == "default", f"rope_type is {rope.get('rope_type')}")
    require(config["attention_bias"] == config["mlp_bias"], "only some linear layers have biases")
    return [
        "model=llama",
        f"model.d_model={config['hidden_size']}",
        f"model.n_layers={config['num_hidden_layers']}",
        f"model.n_heads={config['num_attention_heads']}",
        f"model.n_kv_heads={config['num_key_value_heads']}",
        f"model.head_dim={config['head_dim']}",
        f"model.d_ff={config['intermediate_size']}",
        f"model.norm.eps={config['rms_norm_eps']}",
        f"model.position.attention.theta={rope['rope_theta']}",
        f"model.bias={config['mlp_bias']}",
        f"embedding={'tied' if config['tie_word_embeddings'] else 'untied'}",
    ]
