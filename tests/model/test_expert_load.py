"""The load of experts, and what evens it: a loss, or a bias that no gradient moves."""

from functools import partial

import mlx.core as mx
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp import compose, load, run
from lmxexp.ops.route import balance_loss, expert_load
from tests.contracts.small_models import small_model
from tests.end_to_end.processes import assert_same_run, small
from tests.model.test_moe import make, tokens
from tests.train.small_run import RandomTokens, make_step


def test_load_and_balance_loss_by_hand():
    indices = mx.array([[0, 1], [0, 2], [0, 1]])
    load = expert_load(indices, 4)
    assert load.tolist() == pytest.approx([2.0, 4 / 3, 2 / 3, 0.0])
    probs = mx.array([[0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1], [0.4, 0.3, 0.2, 0.1]])
    assert balance_loss(load, probs).item() == pytest.approx(2 * 0.5 + 4 / 3 * 0.2 + 2 / 3 * 0.2)
    even = mx.full((3, 4), 0.25)
    assert balance_loss(load, even).item() == pytest.approx(1.0)


def test_aux_by_layer():
    """The load is a vector per layer, the losses one sum over layers."""
    model = small_model("ffn=moe", "ffn.z_weight=0.1", "model.n_layers=3")
    _, aux = model.hidden(mx.zeros((1, 5), mx.int32))
    assert set(aux) == {"balance_loss", "router_z_loss", *(f"expert_load/{i}" for i in range(3))}
    assert all(aux[f"expert_load/{i}"].shape == (8,) for i in range(3))


def skewed_step(n_micro, **settings):
    """Training that leaves the weights alone, of a model whose router prefers the first experts."""
    step = make_step(
        "ffn=moe_deepseek_v3",
        "ffn.router.bias_rate=0.02",
        "ffn.router.bias=true",
        optimizer=partial(mlx.optimizers.SGD, learning_rate=1e-12),
        n_micro=n_micro,
        **settings,
    )
    for layer in step.model.layers:
        router = layer.mlp.router
        router.gate.bias = mx.linspace(0.7, -0.7, 16)
        router.e_score_correction_bias = mx.zeros((16,))
    return step


@pytest.mark.parametrize("n_micro", [1, 4])
def test_the_bias_evens_the_load(n_micro):
    """From one expert with several times its share to all near theirs, with no help from any gradient."""
    step, source = skewed_step(n_micro), RandomTokens()
    loads = []
    for i in range(80):
        scalars = step(source.batch(i))
        mx.eval(scalars, step.state)
        loads.append(np.array([np.array(scalars[f"train/expert_load/{layer}"]) for layer in range(2)]))
    assert np.allclose(np.array(loads).mean(axis=2), 1.0, atol=1e-5)
    before, after = np.mean(loads[:3], axis=0), np.mean(loads[-20:], axis=0)
    assert before.max() > 2.0
    assert before.min() < 0.3
    assert after.max() < 1.3
    assert after.min() > 0.7
    assert all(n == 1 for n in step.sentinel.traces.values())


def test_one_move_of_the_bias():
    """By the rate, against the load of the whole batch however it is split."""
    biases = {}
    for n_micro, compile in ((1, True), (4, True), (1, False)):
        step = skewed_step(n_micro, compile=compile)
        scalars = step(RandomTokens().batch(0))
        mx.eval(scalars, step.state)
        for i, layer in enumerate(step.model.layers):
            bias = layer.mlp.router.e_score_correction_bias
            load = np.array(scalars[f"train/expert_load/{i}"])
            assert bias.tolist() == pytest.approx((0.02 * np.sign(1.0 - load)).tolist())
            biases.setdefault(i, bias.tolist())
            assert bias.tolist() == biases[i]
    trainable = dict(tree_flatten(step.model.trainable_parameters()))
    assert not any("e_score" in name for name in trainable)


def test_the_bias_is_saved_and_restored(tmp_path):
    """A run that was stopped and resumed is the one that was not, and what is loaded has the run's bias."""
    plain = ["train.compile=false", "train.self_test=false", "train.steps=6", "train.checkpoint_every=3"]
    overrides = small(tmp_path, "ffn=moe_deepseek_v3", *plain)
    run(compose(overrides), tmp_path / "whole")
    run(compose([*overrides, "+callback.stop={_target_:tests.end_to_end.stop_at.StopAt,at:4}"]), tmp_path / "part")
    run(compose([f"resume={tmp_path / 'part'}"]))
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    for layer in load(tmp_path / "whole").model.layers:
        bias = np.array(layer.mlp.router.e_score_correction_bias)
        assert np.abs(bias).max() > 0.0015
        assert np.abs(bias / 0.001 - np.round(bias / 0.001)).max() < 1e-3
        assert np.abs(bias).max() < 0.00601  # six moves


def test_the_balance_loss_evens_the_load():
    """Its gradient alone, on a router that prefers the first experts."""
    layer = make("ffn=moe ffn.balance_weight=1.0")
    layer.router.gate.weight = 0.3 * layer.router.gate.weight + 0.03 * (4.0 - mx.arange(8.0))[:, None]
    x = tokens((4, 64)) + 0.5
    optimizer = mlx.optimizers.Adam(learning_rate=3e-3)

    def loss(gate):
        layer.router.gate.update(gate)
        return layer(x)[1]["balance_loss"]

    before = layer(x)[1]["expert_load"]
    gate = layer.router.gate.parameters()
    for _ in range(60):
        gate = optimizer.apply_gradients(mx.grad(loss)(gate), gate)
        mx.eval(gate, optimizer.state)
    layer.router.gate.update(gate)
    after = layer(x)[1]["expert_load"]
    assert before.max().item() > 1.8
    assert after.max().item() < 1.3
