"""Families with experts: configurations in the words of others, and designs that none of them has."""

import mlx.core as mx
import pytest
from hydra.utils import instantiate

from lmxexp import compose
from lmxexp.export import export
from lmxexp.export.family import InexpressibleError
from lmxexp.export.write import load_family
from lmxexp.interfaces import ConfigError
from lmxexp.model.attention.reach import Chunk, Full, Window
from lmxexp.model.ffn.moe import MixtureOfExperts
from tests.parity.harness import make, preset_in

SIZES = {
    "vocab_size": 19,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def build(family, **config):
    """The model of a ``config.json`` that says as little as it may."""
    overrides = load_family(family).overrides({**SIZES, **config})
    return instantiate(compose(overrides).model.net, _convert_="all")(vocab_size=19)


def test_mixtral_that_says_little():
    model = build("mixtral")
    moe = model.layers[0].mlp
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.balance_weight) == (8, 2, 24, 0.001)
    assert type(model.mixers()[0].reach) is Full
    assert model.mixers()[0].position.theta == 1e6


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts"])
def test_qwen3_moe_counts_experts_under_two_names(key):
    moe = build("qwen3_moe", moe_intermediate_size=8, **{key: 12}).layers[0].mlp
    assert (moe.n_experts, moe.top_k, moe.d_expert, moe.router.norm_topk_prob) == (12, 8, 8, False)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mlp_only_layers": [1]}, r"layers \[1\] have no experts"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    ],
)
def test_qwen3_moe_with_dense_layers_is_refused(change, reason):
    with pytest.raises(InexpressibleError, match=reason):
        load_family("qwen3_moe").overrides({**SIZES, **change})


def test_gpt_oss_that_says_little():
    """YaRN by 32, and a window in the first of every two layers."""
    model = build("gpt_oss", num_local_experts=6)
    position = model.mixers()[0].position
    scaling = position.scaling
    assert (position.theta, scaling.factor, scaling.original_len, scaling.truncate) == (150000.0, 32.0, 4096, False)
    assert [type(m.reach) for m in model.mixers()] == [Window, Full, Window, Full]
    assert model.mixers()[0].reach.window == 128
    assert model.layers[0].mlp.experts.limit == 7.0


def test_gpt_oss_in_four_bits_is_refused():
    with pytest.raises(InexpressibleError, match=r"quantization_config is .*mxfp4"):
        load_family("gpt_oss").overrides({**SIZES, "quantization_config": {"quant_method": "mxfp4"}})


@pytest.mark.parametrize(("step", "experts"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2])])
def test_llama4_that_says_little(step, experts):
    """Every fourth layer sees all; every so many have experts."""
    model = build("llama4", interleave_moe_layer_step=step, intermediate_size_mlp=40)
    assert [i for i, layer in enumerate(model.layers) if isinstance(layer.mlp, MixtureOfExperts)] == experts
    assert [type(m.reach) for m in model.mixers()] == [Chunk, Chunk, Chunk, Full]
    assert model.mixers()[0].position.interleaved
    assert model.mixers()[3].position.floor_scale == 8192
    assert all(layer.mlp.d_ff == 40 for i, layer in enumerate(model.layers) if i not in experts)


def test_llama4_with_layers_of_a_third_sort_is_refused():
    config = {**SIZES, "no_rope_layers": [1, 1, 1, 0], "layer_types": ["chunked_attention"] * 4}
    with pytest.raises(InexpressibleError, match="layers with chunks are not those with rotary positions"):
        load_family("llama4").overrides(config)


@pytest.mark.parametrize(
    ("family", "change", "reason"),
    [
        ("mixtral", "ffn.router.norm_topk_prob=false", "weights of experts are not normalised"),
        ("mixtral", "ffn.router.scale=2", "routing weights are scaled by 2"),
        ("mixtral", "ffn.router.n_groups=2 ffn.router.topk_groups=1", "experts are chosen in n_groups=2"),
        ("mixtral", "ffn.weigh=input", "routing weights multiply what experts get"),
        ("mixtral", "ffn.experts.bias=true", "whether there are biases differs"),
        ("mixtral", "ffn.experts.activation=relu2", "the experts' activation is relu2"),
        ("mixtral", "ffn=moe_relu2", "the experts is PlainExperts, not GatedExperts"),
        ("qwen3_moe", "ffn=moe_shared", "there is a shared expert"),
        ("gpt_oss", "ffn.experts.bias=false ffn.router.bias=false", "the feed-forward has no biases"),
        ("gpt_oss", "attention=gqa", "the sink of attention is absent"),
        ("llama4", "ffn.router.bias_rate=0.01", "a bias corrects the choice of experts"),
        ("llama4", "ffn.n_shared=2", "the shared expert is as wide as 2 others"),
        ("llama4", "position=rope", "rope pairs elements half a head apart"),
        ("llama4", "attention@model.local=gqa", "no layer has chunks"),
        ("llama4", "model.norm.eps=0.001", "eps of the norms of queries and keys is another"),
    ],
)
def test_designs_of_no_family(family, change, reason, tmp_path):
    model, cfg = make([*preset_in("small", family), *change.split()])
    mx.eval(model.parameters())
    with pytest.raises(ConfigError, match=rf"what keeps it from being {family}: .*{reason}"):
        export(model, cfg, tmp_path)
