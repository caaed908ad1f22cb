"""What every file of conf/optim has to do, with the settings that are in it."""

import functools
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.optimizers import clip_grad_norm
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from omegaconf import OmegaConf

import lmxexp
from lmxexp.interfaces import ConfigError
from lmxexp.optim.build import build_optimizer, leaf_optimizers, learning_rates
from lmxexp.parallel.sharded import check_optimizer
from lmxexp.schedule.cosine import Cosine
from tests.optim.toy_problem import FEW, MAX_NORM, SHAPES, STEPS, by_mlx, gradient, start, to_flat, to_tree

FILES = sorted((Path(__file__).parents[2] / "conf/optim").glob("*.yaml"))
SCHEDULE = Cosine(steps=STEPS, warmup_steps=5, final=0.1)

pytestmark = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@functools.cache
def composed(file):
    return lmxexp.compose([f"optim={file.stem}"]).optim


def node_of(file):
    """The settings of a file, and those of the optimizer inside if it is one around another."""
    node = OmegaConf.load(file)
    node = composed(file) if "defaults" in node else node
    return node, node.get("inner", node)


def build(file, schedule=SCHEDULE, **settings):
    node, inner = node_of(file)
    node = OmegaConf.merge(node, settings if inner is node else {"inner": settings})
    if "ns_precision" in node:
        node.ns_precision = "fp32"  # bf16, which a GPU takes, rounds otherwise when it is compiled: nothing to compare
    return build_optimizer(instantiate(node, _convert_="all"), schedule)


def ready(file, dtype=mx.float32, names=tuple(SHAPES)):
    """An initialised optimizer and the parameters ``names`` to start from."""
    optimizer = build(file)
    parameters = to_tree({name: start()[name] for name in names}, dtype)
    optimizer.init(parameters)
    return optimizer, parameters


def bits(tree):
    return {name: (a.dtype, np.array(a.astype(mx.float32)).tobytes()) for name, a in tree_flatten(tree)}


def test_first_line_describes_it(file):
    first = file.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert not first.startswith("# @")


def compile_step(optimizer, parameters):
    """A compiled step on explicit state, as the trainer's, and a list that grows by one at every trace."""
    state, traces = [parameters, optimizer.state], []

    def step(gradients):
        traces.append(1)
        parameters.update(optimizer.apply_gradients(gradients, parameters))

    return mx.compile(step, inputs=state, outputs=state), traces


def test_it_improves_and_follows_the_schedule(file):
    def slope(parameters):
        return sum(float(np.abs(g).sum()) for g in gradient(to_flat(parameters), 0).values())

    optimizer, parameters = ready(file)
    assert slope(by_mlx(optimizer, parameters)) < slope(parameters)
    expected = node_of(file)[1].learning_rate * SCHEDULE(mx.array(STEPS - 1)).item()
    np.testing.assert_allclose(learning_rates(optimizer)["train/lr"].item(), expected, rtol=1e-6)


def test_state_is_complete_after_init_and_in_fp32(file):
    optimizer, parameters = ready(file)
    before = {name: (a.shape, a.dtype) for name, a in tree_flatten(optimizer.state)}
    by_mlx(optimizer, parameters, range(1))
    after = tree_flatten(optimizer.state)
    assert all(isinstance(a, mx.array) for _, a in after)
    assert {name: (a.shape, a.dtype) for name, a in after} == before
    assert {a.dtype for name, a in after if not name.endswith("step")} == {mx.float32}


def test_compiled_equals_eager_in_one_trace(file):
    expected = to_flat(by_mlx(*ready(file, names=FEW), range(10)))
    optimizer, parameters = ready(file, names=FEW)
    step, traces = compile_step(optimizer, parameters)
    for i in range(10):
        gradients, _ = clip_grad_norm(to_tree(gradient(to_flat(parameters), i)), MAX_NORM)
        step(gradients)
        mx.eval(parameters, optimizer.state)
    assert len(traces) == 1
    found = to_flat(parameters)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_resumes_bitwise(file, tmp_path):
    through, parameters = ready(file)
    expected = by_mlx(through, parameters, range(12))

    first, parameters = ready(file)
    parameters = by_mlx(first, parameters, range(7))
    mx.save_safetensors(str(tmp_path / "optimizer.safetensors"), dict(tree_flatten(first.state)))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), dict(tree_flatten(parameters)))

    second, _ = ready(file)
    saved = mx.load(str(tmp_path / "model.safetensors"))
    # In the order of the model, as its load_weights keeps it: the gradient's norm is a sum in that order.
    parameters = to_tree({name: np.array(saved[name], np.float64) for name in start()})
    second.state = tree_unflatten(list(mx.load(str(tmp_path / "optimizer.safetensors")).items()))
    found = by_mlx(second, parameters, range(7, 12))
    assert bits(found) == bits(expected)
    assert bits(second.state) == bits(through.state)


def test_restored_then_compiled_goes_on_in_one_trace(file):
    first, parameters = ready(file, names=FEW)
    parameters = by_mlx(first, parameters, range(3))
    gradients = to_tree(gradient(to_flat(parameters), 3))
    second, _ = ready(file, names=FEW)
    second.state = tree_unflatten(tree_flatten(first.state))
    expected = to_flat(first.apply_gradients(gradients, parameters))

    step, traces = compile_step(second, parameters)
    step(gradients)
    found = to_flat(parameters)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    step(gradients)
    mx.eval(parameters, second.state)
    assert len(traces) == 1
    assert {int(a) for name, a in tree_flatten(second.state) if name.endswith("step")} == {5}


def test_bf16_parameters_stay_finite(file):
    optimizer, parameters = ready(file, mx.bfloat16)
    types = {name: a.dtype for name, a in tree_flatten(optimizer.state)}
    for i in range(20):
        gradients = to_tree(gradient(to_flat(parameters), i), mx.bfloat16)
        parameters = optimizer.apply_gradients(gradients, parameters)
        mx.eval(parameters, optimizer.state)
    for name, a in tree_flatten([parameters, optimizer.state]):
        assert mx.isfinite(a).all(), name
    assert all(a.dtype == mx.bfloat16 for _, a in tree_flatten(parameters))
    assert {name: a.dtype for name, a in tree_flatten(optimizer.state)} == types
    assert {dtype for name, dtype in types.items() if not name.endswith("step")} == {mx.float32}


def test_bf16_gradients_are_computed_with_in_fp32(file):
    """One step from the same numbers, once stored as bf16 and once as fp32, leaves the same state."""
    states = []
    rounded = to_flat(to_tree(start(), mx.bfloat16))
    for dtype in (mx.bfloat16, mx.float32):
        optimizer = build(file)
        optimizer.init(to_tree(rounded, dtype))
        gradients = to_flat(to_tree(gradient(rounded, 0), mx.bfloat16))
        optimizer.apply_gradients(to_tree(gradients, dtype), to_tree(rounded, dtype))
        states.append(bits(optimizer.state))
    assert states[0] == states[1]


def test_zero_gradients_leave_vectors_alone(file):
    optimizer, parameters = ready(file)
    zero = {name: np.zeros_like(p) for name, p in start().items()}
    for _ in range(3):
        parameters = optimizer.apply_gradients(to_tree(zero), parameters)
    for name, p in to_flat(parameters).items():
        assert np.isfinite(p).all()
        if p.ndim < 2:
            np.testing.assert_array_equal(p, start()[name], err_msg=name)


def test_decay_shrinks_every_matrix(file):
    _, node = node_of(file)
    if "weight_decay" not in node:
        pytest.skip("has no weight decay")
    estimate = {"d0": 0.1} if "d0" in node else {}  # what Prodigy multiplies the learning rate by at its first step
    settings = estimate | {"weight_decay": 0.5} | ({"adamw": {"weight_decay": 0.25}} if "adamw" in node else {})
    optimizer = build(file, lambda step: mx.array(1.0), **settings)
    optimizer.init(to_tree(start()))
    zero = to_tree({name: np.zeros_like(p) for name, p in start().items()})
    found = to_flat(optimizer.apply_gradients(zero, to_tree(start())))
    for name, p in start().items():
        by_adamw = "adamw" in node and ("embed" in name or "lm_head" in name)
        shrink = node.adamw.learning_rate * 0.25 if by_adamw else node.learning_rate * estimate.get("d0", 1) * 0.5
        if file.stem == "lamb":
            shrink = node.learning_rate  # its trust ratio makes every change of a matrix so large
        expected = p * (1 - shrink) if p.ndim >= 2 else p
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, err_msg=name)


def test_elementwise_means_that_a_part_is_updated_as_in_the_whole(file):
    """Bit for bit, whichever part; and what says nothing is not taken for it."""
    whole, parameters = ready(file)
    if not all(vars(type(leaf)).get("elementwise", False) for leaf in leaf_optimizers(whole)):
        with pytest.raises(ConfigError, match=r"train\.parallel=fsdp"):
            check_optimizer(whole)
        return
    check_optimizer(whole)
    part_of = functools.partial(tree_map, lambda a: a[1 : 1 + a.shape[0] // 2])
    own, of_part = build(file), part_of(parameters)
    own.init(of_part)
    for step in range(4):
        gradients = to_tree(gradient(to_flat(parameters), step), mx.float32)
        parameters = whole.apply_gradients(gradients, parameters)
        of_part = own.apply_gradients(part_of(gradients), of_part)
    assert bits(of_part) == bits(part_of(parameters))
