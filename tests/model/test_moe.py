"""Mixtures of experts against float64 loops over tokens."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten, tree_unflatten

from lmxexp import build_model, compose
from lmxexp.interfaces import ConfigError
from lmxexp.model.ffn.experts import ExpertLinear
from lmxexp.ops.experts import bring_back, copy_to_experts, sort_by_expert
from tests.contracts.small_models import randomise, small_config
from tests.reference.experts import mixture

D = 32

CASES = {
    "ffn=moe": {"top_k": 2, "balance_weight": 0.01},
    "ffn=moe model.bias=true ffn.top_k=3 ffn.z_weight=0.2 ffn.balance_weight=0.5 ffn.router.bias=true": {
        "top_k": 3,
        "z_weight": 0.2,
        "balance_weight": 0.5,
    },
    "ffn=moe ffn.router.norm_topk_prob=false ffn.router.scale=1.7": {
        "top_k": 2,
        "normalise": False,
        "scale": 1.7,
        "balance_weight": 0.01,
    },
    "ffn=moe ffn.n_experts=5 ffn.top_k=5": {"top_k": 5, "balance_weight": 0.01},
    "ffn=moe_relu2 model.bias=true": {"top_k": 2, "expert": "relu2", "balance_weight": 0.01},
    "ffn=moe_shared model.bias=true": {"top_k": 2, "shared": True, "balance_weight": 0.01},
    "ffn=moe_deepseek_v2": {
        "top_k": 4,
        "normalise": False,
        "n_groups": 4,
        "topk_groups": 2,
        "shared": True,
        "balance_weight": 0.01,
    },
    "ffn=moe_deepseek_v3 ffn.balance_weight=0.3": {
        "top_k": 4,
        "score": "sigmoid",
        "scale": 2.5,
        "n_groups": 4,
        "topk_groups": 2,
        "shared": True,
        "balance_weight": 0.3,
    },
    "ffn=moe_qwen3": {"top_k": 4, "balance_weight": 0.01},
    "ffn=moe_qwen3_next": {"top_k": 4, "shared": True, "balance_weight": 0.01},
    "ffn=moe_gpt_oss ffn.experts.limit=0.6 ffn.experts.alpha=1.3": {
        "top_k": 4,
        "expert": "clamped",
        "limit": 0.6,
        "alpha": 1.3,
        "balance_weight": 0.01,
    },
    "ffn=moe_llama4": {
        "top_k": 1,
        "score": "sigmoid",
        "normalise": False,
        "weigh": "input",
        "shared": True,
        "balance_weight": 0.01,
    },
    "ffn=moe_llama4 ffn.top_k=2": {
        "top_k": 2,
        "score": "sigmoid",
        "normalise": False,
        "weigh": "input",
        "shared": True,
        "balance_weight": 0.01,
    },
}


def make(case, seed=0):
    """A random mixture of that configuration."""
    layer = instantiate(small_config(*case.split()).model.ffn, _convert_="all")(d_model=D)
    randomise(layer, seed)
    return layer


def tokens(shape, seed=2):
    return mx.random.normal((*shape, D), key=mx.random.key(seed))


def double(tree):
    return {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(tree)}


@pytest.mark.parametrize("case", CASES)
def test_forward(case):
    layer, x = make(case), tokens((2, 11))
    y, aux = layer(x)
    want, choices, load, losses = mixture(
        np.array(x, dtype=np.float64).reshape(-1, D), double(layer.parameters()), **CASES[case]
    )
    assert np.abs(np.array(y).reshape(-1, D) - want).max() < 2e-5 * np.abs(want).max()
    assert layer.router(x.reshape(-1, D)).indices.tolist() == choices
    assert np.array(aux["expert_load"]) == pytest.approx(load)
    for name, value in losses.items():
        assert (name in aux) == (value != 0)
        assert float(aux.get(name, mx.array(0.0))) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case):
    """Of the outputs and the auxiliary losses together, along random directions, against differences of the loops."""
    layer, x = make(case), tokens((1, 13))
    at = {"x": np.array(x[0], dtype=np.float64), **double(layer.parameters())}
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(13, D))

    def reference(at):
        y, _, _, losses = mixture(at["x"], at, **CASES[case])
        return (weights * y).sum() + sum(losses.values())

    def ours(params, x):
        layer.update(params)
        y, aux = layer(x)
        return (mx.array(weights.astype(np.float32)) * y[0]).sum() + sum(
            v for k, v in aux.items() if k.endswith("loss")
        )

    gradients = mx.grad(ours, argnums=(0, 1))(layer.trainable_parameters(), x)
    got = {"x": np.array(gradients[1][0]), **{n: np.array(g) for n, g in tree_flatten(gradients[0])}}
    assert set(at) - set(got) <= {"router.e_score_correction_bias"}
    for name, gradient in got.items():
        for _ in range(2):
            direction = rng.normal(size=gradient.shape)
            step = 1e-6 * direction
            slope = (reference({**at, name: at[name] + step}) - reference({**at, name: at[name] - step})) / 2e-6
            size = np.linalg.norm(gradient) + 1e-9
            assert abs((gradient * direction).sum() - slope) < 1e-4 * size, name


def test_copies_return_to_their_tokens():
    """Sorting and its gradient are exact: a token's gradient is the sum of its copies'."""
    indices = mx.array([[2, 0], [1, 2], [0, 1], [2, 1]])
    x = mx.arange(8.0).reshape(4, 2)
    order = sort_by_expert(indices)
    assert order.experts.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    rows = copy_to_experts(x, order)
    assert rows.tolist() == [x[t].tolist() for t in (0, 2, 1, 2, 3, 0, 1, 3)]
    assert mx.array_equal(bring_back(rows, order).reshape(4, 2, 2), mx.stack([x, x], axis=1)).item()
    factors = mx.arange(16.0).reshape(8, 2)
    g = mx.grad(lambda x: (bring_back(copy_to_experts(x, order), order) * factors).sum())(x)
    assert g.tolist() == factors.reshape(4, 2, 2).sum(axis=1).tolist()


@pytest.mark.parametrize("kind", ["moe", "moe_deepseek_v3"])
def test_equal_scores_go_to_the_first_experts(kind):
    layer = make(f"ffn={kind}")
    layer.router.gate.weight = mx.zeros_like(layer.router.gate.weight)
    if kind == "moe_deepseek_v3":
        layer.router.e_score_correction_bias = mx.zeros((layer.n_experts,))
    routing = layer.router(tokens((7,)))
    assert routing.indices.tolist() == [list(range(layer.top_k))] * 7
    assert mx.isfinite(layer(tokens((1, 7)))[0]).all().item()


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_all_tokens_to_one_expert(dtype):
    """The mixture is then that expert, and only it learns."""
    layer = make("ffn=moe ffn.top_k=1 ffn.router.bias=true")
    layer.router.gate.bias = 50.0 * (mx.arange(8) == 3)
    layer.set_dtype(dtype)
    x = tokens((2, 9)).astype(dtype)
    y, aux = layer(x)
    assert y.dtype == dtype
    e = layer.experts
    gate, up, down = (m.weight[3].astype(mx.float32) for m in (e.gate_proj, e.up_proj, e.down_proj))
    x32 = x.astype(mx.float32)
    want = (nn.silu(x32 @ gate.T) * (x32 @ up.T)) @ down.T
    assert mx.abs(y - want).max().item() < (1e-5 if dtype == mx.float32 else 2e-2) * mx.abs(want).max().item()
    assert aux["expert_load"].tolist() == [8.0 * (i == 3) for i in range(8)]
    assert float(aux["balance_loss"]) == pytest.approx(0.08, rel=1e-2)  # 0.01 E
    _, gradient = nn.value_and_grad(layer, lambda m: m(x)[0].astype(mx.float32).square().sum())(layer)
    for name in ("gate_proj", "up_proj", "down_proj"):
        size = mx.abs(gradient["experts"][name]["weight"]).max(axis=(1, 2))
        assert [bool(s) for s in (size > 0).tolist()] == [i == 3 for i in range(8)]


def test_width_of_an_expert():
    """A token meets as many weights as in the dense layer, to the nearest multiple of 8."""

    def width(*overrides):
        return instantiate(compose(list(overrides)).model.ffn, _convert_="all")(d_model=128).d_expert

    assert width("ffn=moe", "model.d_ff=96") == 48
    assert width("ffn=moe_shared", "model.d_ff=96") == 32
    assert width("ffn=moe") == 168  # 8/3 of 128 is 336
    assert width("ffn=moe_relu2") == 256
    assert width("ffn=moe", "ffn.d_expert=20") == 20
    assert width("ffn=moe_qwen3", "model.d_ff=100") == 24  # 25
    assert width("ffn=moe_qwen3", "model.d_ff=8") == 8  # at least
    layer = make("ffn=moe_deepseek_v2")
    assert layer.shared_expert.d_ff == 2 * layer.d_expert


def test_active_weights_count():
    model = build_model(compose(["ffn=moe_shared", "model.n_layers=1"]), vocab_size=19)
    layer = model.layers[0].mlp
    one = sum(m.weight.size for m in layer.experts.modules() if isinstance(m, ExpertLinear)) // 8
    assert layer.weight_flops() == 2 * 2 * one
    dense = build_model(compose(["model.n_layers=1", f"model.d_ff={3 * layer.d_expert}"]), vocab_size=19)
    router = 8 * 128
    assert model.flops_per_token(64) == dense.flops_per_token(64) + 6 * router


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("ffn=moe ffn.top_k=9", "ffn.top_k=9 must be between 1 and ffn.n_experts=8"),
        ("ffn=moe ffn.top_k=0", "ffn.top_k=0 must be"),
        ("ffn=moe ffn.n_shared=1", "ffn.n_shared=1 with no ffn.shared"),
        ("ffn=moe_shared ffn.n_shared=0", "ffn.n_shared=0 with an ffn.shared"),
        ("ffn=moe ffn.balance_weight=-1", "ffn.balance_weight=-1"),
        ("ffn=moe ffn.weigh=both", "ffn.weigh=both must be output or input"),
        ("ffn=moe_deepseek_v2 ffn.router.n_groups=3", "ffn.n_experts=16 must be a multiple"),
        ("ffn=moe_deepseek_v2 ffn.router.topk_groups=5", "topk_groups=5 must be between 1 and"),
        ("ffn=moe_deepseek_v2 ffn.top_k=9", "ffn.top_k=9 is more than the 4 experts"),
        ("ffn=moe_deepseek_v3 ffn.router.n_groups=16 ffn.router.topk_groups=4", "less than two of n_experts=16"),
        ("ffn=moe_deepseek_v3 ffn.router.bias_rate=0", "bias_rate=0 must be positive"),
        ("ffn=moe_gpt_oss ffn.experts.limit=0", "limit=0 must be positive"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build_model(compose(overrides.split()), vocab_size=19)


@pytest.mark.parametrize("init", ["gpt2", "fan_in", "normal"])
def test_experts_start_like_linear_layers(init):
    """The law of each matrix, expert by expert; output projections as those of the dense layer."""
    cfg = compose(["ffn=moe", f"init={init}", "model.d_model=128", "model.n_layers=2"])
    model = build_model(cfg, vocab_size=19)
    instantiate(cfg.model.init, _convert_="all")(model, mx.random.key(0))
    experts = model.layers[1].mlp.experts
    std = {"gpt2": (0.02, 0.01), "normal": (0.02, 0.02), "fan_in": (128**-0.5, 168**-0.5)}[init]
    for layer, want in ((experts.gate_proj, std[0]), (experts.up_proj, std[0]), (experts.down_proj, std[1])):
        for e in range(8):
            assert mx.std(layer.weight[e]).item() == pytest.approx(want, rel=0.03)
        assert abs((layer.weight[0] * layer.weight[1]).mean().item()) < 0.05 * want**2
    assert not mx.array_equal(experts.gate_proj.weight, experts.up_proj.weight).item()


@pytest.mark.parametrize("kind", ["moe", "moe_llama4", "moe_gpt_oss"])
def test_checkpointing_and_compiling_keep_gradients(kind):
    layer, x = make(f"ffn={kind}"), tokens((2, 9))
    params = layer.parameters()

    def loss(params):
        layer.update(params)
        y, aux = layer(x)
        return y.square().mean() + aux["balance_loss"]

    want = dict(tree_flatten(mx.grad(loss)(params)))
    for transform in (mx.compile(mx.grad(loss)), mx.grad(mx.checkpoint(loss))):
        for name, g in tree_flatten(transform(params)):
            assert mx.abs(g - want[name]).max().item() <= 1e-5 * mx.abs(want[name]).max().item(), name
    layer.update(tree_unflatten(list(tree_flatten(params))))
