"""muP and CompleteP: starting values and learning rates against the papers' multipliers written out, and other code."""

import functools
import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import lmxexp
from lmxexp.build import build
from lmxexp.cli import conf
from lmxexp.interfaces import ConfigError
from lmxexp.model.build import build_model
from lmxexp.ops.trees import by_path
from lmxexp.optim.adam import Adam
from lmxexp.optim.build import leaf_optimizers, optimizer_of
from lmxexp.optim.full_precision import RateFactors

SMALL = ["model.n_layers=4", "model.n_heads=2", "model.n_kv_heads=1"]
MUP = ["init=mup", "model.init.base_width=16", "model.init.base_head_dim=8"]
OF_NO_GIVEN_SIZE = {"adafactor", "kron", "lamb", "prodigy", "schedule_free_adamw", "schedule_free_sgd", "scion", "sgd"}
OF_NO_GIVEN_SIZE |= {"shampoo", "soap", "sophia"}
BATCH = mx.array(np.random.default_rng(0).integers(0, 24, (3, 10)))


def made(*overrides, width=32):
    cfg = lmxexp.compose([*SMALL, *overrides, f"model.d_model={width}"])
    return cfg, build_model(cfg, vocab_size=24)


def test_at_the_base_it_is_gpt2_s():
    base = [*MUP[:1], "model.init.base_width=32", "model.init.base_depth=4"]
    cfg, ours = made(*base)
    _, gpt2 = made("init=gpt2")
    rule = build(cfg.model.init)
    for path, a in by_path(ours.parameters()).items():
        assert mx.array_equal(a, by_path(gpt2.parameters())[path]).item(), path
        assert rule.rate_factor(path, a) == 1.0


def test_rates_are_those_of_the_papers():
    cfg, model = made(*MUP, "embedding=untied", "model.init.base_depth=2", "model.bias=true")
    rule = build(cfg.model.init)
    for path, a in by_path(model.trainable_parameters()).items():
        expected = 1.0
        if path.endswith(("proj.weight",)):
            expected /= 2  # width 32 of 16
        if path.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias")):
            expected /= 2  # depth 4 of 2
        if path in ("norm.weight", "norm.bias"):
            expected /= 2  # the multiplier of the logits
        assert rule.rate_factor(path, a) == expected, path
        assert rule.rate_factor(path, a, spectral=True) == (expected * 2 if path.endswith("proj.weight") else expected)


def test_standard_deviations():
    _, model = made(*MUP, "embedding=untied", "model.init.base_depth=2", width=256)
    found = {path: mx.std(a).item() for path, a in by_path(model.parameters()).items()}
    hidden, output = 0.02 / math.sqrt(16), 0.02 / math.sqrt(16) / math.sqrt(2 * 2) / 2
    expected = {
        "embedding.embed_tokens.weight": 0.02,
        "embedding.lm_head.weight": 0.02,
        "layers.1.self_attn.q_proj.weight": hidden,
        "layers.1.mlp.up_proj.weight": hidden,
        "layers.1.mlp.down_proj.weight": output,
        "layers.1.self_attn.o_proj.weight": output,
    }
    for path, std in expected.items():
        assert found[path] == pytest.approx(std, rel=0.03), path
    assert mx.all(model.norm.weight == 1 / 16).item()
    assert model.layers[0].self_attn.scale == pytest.approx(8**0.5 / 128)


class Times(nn.Module):
    """A module whose output is multiplied."""

    def __init__(self, module, factor):
        super().__init__()
        self.inner, self.factor = module, factor

    def __call__(self, x, **rest):
        y = self.inner(x, **rest)
        return (y[0] * self.factor, y[1]) if isinstance(y, tuple) else y * self.factor


def written_out(model, width_ratio, depth_ratio):
    """The same model as the papers have it: multipliers on branches and logits, weights without them."""
    model.norm.weight = mx.ones_like(model.norm.weight)
    model.logit_softcap = lambda logits: logits / width_ratio
    for layer in model.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight = matrix.weight * depth_ratio
        layer.self_attn, layer.mlp = Times(layer.self_attn, 1 / depth_ratio), Times(layer.mlp, 1 / depth_ratio)
    return model


class OnlyWidth:
    """The papers' learning rates beside the multipliers: hidden matrices by the width."""

    def rate_factor(self, path, parameter, *, spectral=False):
        return 0.5 if path.endswith("proj.weight") else 1.0


def train(model, optimizer, steps=4):
    optimizer.init(model.trainable_parameters())

    def loss(parameters):
        model.update(parameters)
        return nn.losses.cross_entropy(model(BATCH[:, :-1]), BATCH[:, 1:], reduction="mean")

    outputs = [model(BATCH)]
    for _ in range(steps):
        parameters = model.trainable_parameters()
        gradient = mx.grad(loss)(parameters)
        model.update(optimizer.apply_gradients(gradient, parameters))
        outputs.append(model(BATCH))
    return outputs


def test_absorbed_multipliers_train_the_same_function():
    """Adam's steps do not depend on the gradient's size, so a factor can be in the weight or beside it."""
    cfg, model = made(*MUP, "model.init.base_depth=2", "embedding=tied")
    _, other = made(*MUP, "model.init.base_depth=2", "embedding=tied")
    ours, theirs = (Adam(learning_rate=3e-3, eps=1e-30) for _ in range(2))
    ours.rate_factors = RateFactors(build(cfg.model.init))
    theirs.rate_factors = RateFactors(OnlyWidth())
    for a, b in zip(train(model, ours), train(written_out(other, 2, 2), theirs), strict=True):
        assert mx.abs(a - b).max().item() < 1e-4 * mx.abs(b).max().item()


def test_against_the_authors_package():
    """Which of a model's parameters have a learning rate that goes with the width, and how."""
    torch, mup = pytest.importorskip("torch"), pytest.importorskip("mup")

    def toy(width):
        return torch.nn.ModuleDict(
            {
                "embed_tokens": torch.nn.Embedding(24, width),
                "q_proj": torch.nn.Linear(width, width, bias=True),
                "down_proj": torch.nn.Linear(3 * width, width, bias=False),
                "layernorm": torch.nn.LayerNorm(width),
                "lm_head": mup.MuReadout(width, 24, bias=False),
            }
        )

    model = toy(32)
    mup.set_base_shapes(model, toy(16), delta=toy(24), rescale_params=False)
    rates = {}
    for group in mup.MuAdam(model.parameters(), lr=1.0).param_groups:
        for parameter in group["params"]:
            [name] = [n for n, p in model.named_parameters() if p is parameter]
            rates[name] = group["lr"]
    rule = build(lmxexp.compose([*SMALL, *MUP, "model.d_model=32"]).model.init)
    assert len(rates) == 7
    for name, rate in rates.items():
        shape = tuple(dict(model.named_parameters())[name].shape)
        assert rule.rate_factor(f"layers.0.{name}", mx.zeros(shape)) == rate, name
    assert model["lm_head"].width_mult() == 1 / rule.rate_factor("norm.weight", mx.zeros((32,)))


def test_decay_is_what_it_is_without():
    cfg, model = made(*MUP, "optim.weight_decay=0.5", "optim.learning_rate=1e-2", "schedule=constant")
    optimizer = optimizer_of(cfg)
    parameters = model.trainable_parameters()
    optimizer.init(parameters)
    zero = tree_unflatten([(k, mx.zeros_like(v)) for k, v in tree_flatten(parameters)])
    factor = optimizer.learning_rate.item()
    new = by_path(optimizer.apply_gradients(zero, parameters))
    factor = optimizer.learning_rate.item() * 0.5
    path = "layers.0.mlp.up_proj.weight"
    np.testing.assert_allclose(np.array(new[path]), np.array(by_path(parameters)[path]) * (1 - factor), rtol=1e-6)


@pytest.mark.parametrize("optim", sorted(conf.kinds(conf.conf_dir(), "optim")))
def test_every_optimizer_has_the_factors_or_is_refused(optim):
    """What a hidden matrix moves by in one step, decay apart, against the same without the factors."""
    cfg, model = made(*MUP, f"optim={optim}", "schedule=constant", "schedule.warmup_steps=0")
    if optim in OF_NO_GIVEN_SIZE:
        with pytest.raises(ConfigError, match="it has no learning rates for"):
            optimizer_of(cfg)
        return
    optimizers = [optimizer_of(cfg), optimizer_of(cfg)]
    path, parameters = "layers.0.mlp.up_proj.weight", model.trainable_parameters()
    key = mx.random.key(1)
    gradient = tree_unflatten([(k, mx.random.normal(v.shape, key=key)) for k, v in tree_flatten(parameters)])
    for leaf in (leaf for optimizer in optimizers for leaf in leaf_optimizers(optimizer)):
        leaf.weight_decay = 0.0
    for leaf in leaf_optimizers(optimizers[1]):
        leaf.rate_factors = None
    moved = []
    for optimizer in optimizers:
        optimizer.init(parameters)
        new = parameters
        for _ in range(2):  # ADOPT's first step moves nothing
            new = optimizer.apply_gradients(gradient, new)
        moved.append(np.array(by_path(new)[path] - by_path(parameters)[path]))
    spectral = any(leaf.moves == "spectral" for leaf in leaf_optimizers(optimizers[0]))
    assert np.linalg.norm(moved[0]) == pytest.approx(np.linalg.norm(moved[1]) / (1 if spectral else 2), rel=0.02)


def test_optimizers_of_no_given_size_are_refused():
    with pytest.raises(ConfigError, match="model/init=mup: it has no learning rates for SGD"):
        optimizer_of(lmxexp.compose(["init=mup", "optim=sgd"]))
    for optim in ("adamw", "lion", "muon"):
        assert optimizer_of(lmxexp.compose(["init=mup", f"optim={optim}"])) is not None


@pytest.mark.parametrize("key", ["base_width", "base_depth", "base_head_dim"])
def test_numbers_below_one_are_refused(key):
    with pytest.raises(ConfigError, match=f"model.init.{key}=0 must be at least 1"):
        made("init=mup", f"model.init.{key}=0")


def test_a_last_norm_without_a_weight_is_refused():
    class Plain(nn.Module):
        def __call__(self, x):
            return x

    cfg, model = made(*MUP)
    model.norm = Plain()
    with pytest.raises(ConfigError, match="which here has none that starts at 1"):
        build(cfg.model.init)(model, mx.random.key(0))


def test_rules_are_equal_by_their_settings():
    rules = [build(lmxexp.compose(["init=mup", f"model.init.base_width={w}"]).model.init) for w in (64, 64, 128)]
    first, same, other = (RateFactors(rule) for rule in rules)
    assert first == same
    assert first != other


def test_the_rates_reach_the_run():
    cfg = lmxexp.compose([*SMALL, *MUP, "param_groups=[vector]"])
    leaves = functools.reduce(lambda found, o: [*found, o], optimizer_of(cfg).optimizers, [])
    assert all(leaf.rate_factors is not None for leaf in leaves)
