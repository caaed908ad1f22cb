"""From configuration to optimizer: schedules in place, users' own constructors, metrics, bad settings."""

import functools
from pathlib import Path

import mlx.core as mx
import mlx.optimizers
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.optim.build import build_optimizer, learning_rates
from lmxexp.optim.muon import Muon, MuonWithAdamW
from tests.optim.toy_problem import start, to_tree

CONF = Path(__file__).parents[2] / "conf/optim"


def half_then_more(step):
    return mx.minimum((step.astype(mx.float32) + 1) / 2, 1.0)


def build(kind, **settings):
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{kind}.yaml"), settings)
    return build_optimizer(instantiate(node, _convert_="all"), half_then_more)


def lr(optimizer):
    return {name: round(value.item(), 8) for name, value in learning_rates(optimizer).items()}


def test_learning_rates_follow_the_schedule_in_every_group():
    optimizer = build("muon", learning_rate=0.02, adamw={"learning_rate": 0.004})
    parameters = to_tree(start())
    optimizer.init(parameters)
    for factor in (0.5, 1.0, 1.0):
        optimizer.apply_gradients(parameters, parameters)
        expected = {"train/lr": 0.02 * factor, "train/lr/muon": 0.02 * factor, "train/lr/adamw": 0.004 * factor}
        assert lr(optimizer) == pytest.approx(expected)
    assert all(a.dtype == mx.float32 and a.ndim == 0 for a in learning_rates(optimizer).values())


def test_one_group_has_one_learning_rate():
    assert lr(build("adamw", learning_rate=0.01)) == {"train/lr": 0.005}


def test_groups_of_one_class_are_numbered():
    groups = [mlx.optimizers.SGD(0.1), mlx.optimizers.Lion(0.2), mlx.optimizers.SGD(0.3)]
    optimizer = mlx.optimizers.MultiOptimizer(groups, [lambda path, _: False, lambda path, _: False])
    expected = {"train/lr": 0.1, "train/lr/sgd_0": 0.1, "train/lr/lion": 0.2, "train/lr/sgd_2": 0.3}
    assert lr(optimizer) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion", "Muon"])
def test_constructors_of_mlx_work_as_they_are(name):
    node = OmegaConf.create({"_target_": f"mlx.optimizers.{name}", "_partial_": True, "learning_rate": 0.01})
    optimizer = build_optimizer(instantiate(node, _convert_="all"), half_then_more)
    parameters = to_tree(start())
    optimizer.init(parameters)
    optimizer.apply_gradients(parameters, parameters)
    optimizer.apply_gradients(parameters, parameters)
    assert lr(optimizer) == {"train/lr": 0.01}


def test_mlx_adafactor_without_a_learning_rate_of_its_own():
    factory = functools.partial(mlx.optimizers.Adafactor, learning_rate=0.01, relative_step=False)
    assert lr(build_optimizer(factory, half_then_more)) == {"train/lr": 0.005}
    assert learning_rates(mlx.optimizers.Adafactor()) == {}


def test_factories_in_a_list_are_scheduled_too():
    def both(optimizers):
        return mlx.optimizers.MultiOptimizer([make() for make in optimizers], [lambda path, _: False])

    sgd = functools.partial(mlx.optimizers.SGD, learning_rate=0.1)
    lion = functools.partial(mlx.optimizers.Lion, learning_rate=0.2)
    optimizer = build_optimizer(functools.partial(both, optimizers=[sgd, lion]), half_then_more)
    assert lr(optimizer) == pytest.approx({"train/lr": 0.05, "train/lr/sgd": 0.05, "train/lr/lion": 0.1})


def test_muon_gives_each_parameter_to_the_right_optimizer():
    optimizer = build("muon")
    optimizer.init(to_tree(start()))
    matrices, stacks, others = ({*dict(mlx.utils.tree_flatten(o.state))} for o in optimizer.optimizers)
    assert {"layers.0.q_proj.weight.m", "layers.0.conv1d.weight.m", "layers.1.up_proj.weight.m"} <= matrices
    assert stacks == {"layers.1.experts.weight.m", "step", "learning_rate"}
    assert {"embed_tokens.weight.v", "lm_head.weight.v", "layers.0.norm.weight.v", "layers.0.q_proj.bias.v"} <= others
    assert isinstance(optimizer, MuonWithAdamW)


def test_muon_without_hidden_matrices():
    parameters = {"embed": {"weight": mx.ones((3, 2))}, "norm": {"weight": mx.ones(2)}}
    optimizer = build("muon")
    optimizer.init(parameters)
    found = optimizer.apply_gradients(parameters, parameters)
    assert all(mx.isfinite(a).all() for _, a in mlx.utils.tree_flatten(found))


def test_newton_schulz_is_fp32_on_the_cpu_and_bf16_on_a_gpu():
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    assert Muon(0.02).ns_dtype == (mx.bfloat16 if on_gpu else mx.float32)
    assert Muon(0.02, ns_precision="bf16").ns_dtype == mx.bfloat16


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("adamw", {"learning_rate": 0}, "optim.learning_rate=0 must be above 0"),
        ("adamw", {"learning_rate": -1e-3}, "optim.learning_rate=-0.001 must be above 0"),
        ("adamw", {"learning_rate": float("nan")}, "optim.learning_rate=nan must be above 0"),
        ("adamw", {"learning_rate": float("inf")}, "optim.learning_rate=inf must be above 0 and finite"),
        ("adamw", {"learning_rate": "fast"}, "optim.learning_rate=fast must be a number"),
        ("adamw", {"learning_rate": None}, "optim.learning_rate=None must be a number"),
        ("adamw", {"learning_rate": True}, "optim.learning_rate=True must be a number"),
        ("muon", {"adamw": {"learning_rate": 0}}, "optim.adamw.learning_rate=0 must be above 0"),
        ("adamw", {"betas": [0.9, 1.0]}, r"optim.betas=\[0.9, 1.0\] must be two numbers in \[0, 1\)"),
        ("adam", {"betas": [-0.1, 0.9]}, "optim.betas="),
        ("lion", {"betas": [0.9]}, "optim.betas="),
        ("muon", {"adamw": {"betas": [0.9, 2]}}, r"optim.adamw.betas=\[0.9, 2\]"),
        ("adamw", {"weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
        ("lion", {"weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
        ("sgd", {"weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
        ("adafactor", {"weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
        ("muon", {"weight_decay": -0.1}, "optim.weight_decay=-0.1 must not be negative"),
        ("muon", {"adamw": {"weight_decay": -0.1}}, "optim.adamw.weight_decay=-0.1 must not be negative"),
        ("adam", {"eps": 0}, "optim.eps=0 must be above 0"),
        ("adafactor", {"eps1": 0}, "optim.eps1=0 must be above 0"),
        ("adafactor", {"beta1": 1}, r"optim.beta1=1 must lie in \[0, 1\)"),
        ("sgd", {"momentum": 1}, r"optim.momentum=1 must lie in \[0, 1\)"),
        ("sgd", {"momentum": 0, "nesterov": True}, "optim.nesterov=True needs momentum"),
        ("muon", {"momentum": 1}, r"optim.momentum=1 must lie in \[0, 1\)"),
        ("muon", {"ns_steps": 0}, "optim.ns_steps=0 must be at least 1"),
        ("muon", {"ns_precision": "fp8"}, "optim.ns_precision=fp8 is unknown: choose auto, bf16 or fp32"),
        ("muon", {"scale": "big"}, "optim.scale=big is unknown: choose spectral or match_rms_adamw"),
    ],
)
def test_bad_settings(kind, settings, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        build(kind, **settings)


def test_a_missing_learning_rate_and_a_missing_partial():
    with pytest.raises(ConfigError, match=r"optim\.learning_rate is missing"):
        build_optimizer(functools.partial(mlx.optimizers.Adafactor), half_then_more)
    with pytest.raises(ConfigError, match="_partial_: true"):
        build_optimizer(mlx.optimizers.SGD(0.1), half_then_more)


def test_a_learning_rate_that_is_a_schedule_is_refused():
    factory = functools.partial(mlx.optimizers.SGD, learning_rate=half_then_more)
    with pytest.raises(ConfigError, match="its course is what schedule=… chooses"):
        build_optimizer(factory, half_then_more)
