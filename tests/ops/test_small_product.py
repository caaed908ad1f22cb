"""Products of small matrices by the kernel, beside float64; without a CUDA device as the host computes them."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxexp.ops import cuda_compiler, small_product
from lmxexp.ops.head_loss import head_loss
from lmxexp.ops.linear import gradients_in_rows
from tests.ops.cuda_on_host import HAS_DEVICE, needs_device, needs_kernels

LARGE = [(2048, 256, 1376), (2048, 688, 256), (8000, 256, 512), (1, 4096, 8)]
# Whole tiles and parts of them, one part of the depth and several.
SHAPES = [(1, 8, 8), (70, 72, 136), (64, 64, 64), (130, 200, 24)]


def random(*shape, seed):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(mx.bfloat16)


def wide(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


@needs_kernels
@pytest.mark.parametrize("shape", SHAPES + [pytest.param(s, marks=needs_device) for s in LARGE])
def test_values_and_gradients_are_those_in_float64(kernels, shape):
    n, width, n_out = shape
    x, weight, cotangent = random(n, width, seed=1), random(n_out, width, seed=2), random(n, n_out, seed=3)
    assert small_product.takes(x, weight)
    [y], [of_x, of_weight] = mx.vjp(small_product.product, [x, weight], [cotangent])
    X, W, G = map(wide, (x, weight, cotangent))
    for ours, exact in [(y, X @ W.T), (of_x, G @ W), (of_weight, G.T @ X)]:
        assert ours.dtype == mx.bfloat16
        assert ours.shape == exact.shape
        # What bf16 rounds, and what sums of fp32 do where terms cancel.
        assert (np.abs(wide(ours) - exact) <= 2**-8 * np.abs(exact) + 1e-5 * np.abs(exact).max()).all()


@needs_kernels
def test_what_is_not_a_number_stays_where_it_is(kernels):
    x, weight = random(70, 40, seed=1), random(72, 40, seed=2)
    x[66, 3] = mx.nan
    y = wide(small_product.product(x, weight))
    assert np.isnan(y[66]).all()
    assert np.isfinite(np.delete(y, 66, axis=0)).all()


@needs_kernels
def test_linear_layers_in_training_are_computed_so(kernels):
    layer, x = nn.Linear(40, 24, bias=False), random(3, 5, 40, seed=1)
    layer.set_dtype(mx.bfloat16)

    def loss(weight, x):
        layer.weight = weight
        return (layer(x).astype(mx.float32) * 0.5).sum()

    expected = mx.value_and_grad(loss, argnums=(0, 1))(layer.weight, x)
    if not HAS_DEVICE:
        assert not kernels
    with gradients_in_rows():
        ours = mx.value_and_grad(loss, argnums=(0, 1))(layer.weight, x)
    mx.eval(ours)
    if not HAS_DEVICE:
        assert sorted(name.split("_")[2] for name, _ in kernels) == ["cc", "rc", "rr"]
    assert ours[0].item() == pytest.approx(expected[0].item(), rel=1e-2)
    for a, b in zip(ours[1], expected[1], strict=True):
        assert a.shape == b.shape
        assert mx.allclose(a.astype(mx.float32), b.astype(mx.float32), rtol=2**-6, atol=2**-6)


@needs_kernels
def test_the_head_is_computed_so(kernels, beside_its_twin):
    h, weight = random(66, 64, seed=1), random(104, 64, seed=2) * 0.3
    targets = mx.random.randint(0, 104, (66,), key=mx.random.key(3))

    def function():
        value, gradients = mx.value_and_grad(lambda h, w: head_loss(h, w, targets)[0].sum(), argnums=(0, 1))(h, weight)
        return [value, *gradients]

    beside_its_twin(function, 2**-6)
    assert HAS_DEVICE or {name.split("_")[2] for name, _ in kernels if "product" in name} == {"cc", "rc", "rr"}


@needs_kernels
@pytest.mark.parametrize(
    ("shape", "dtype", "taken"),
    [
        ((8, 16, 24), mx.bfloat16, True),
        ((8, 16, 24), mx.float32, False),
        ((0, 16, 24), mx.bfloat16, False),
        ((8, 12, 24), mx.bfloat16, False),
        ((8, 16, 20), mx.bfloat16, False),
        ((2**16, 128, 128), mx.bfloat16, True),
        ((2**16 + 1, 128, 128), mx.bfloat16, False),
    ],
)
def test_which_are_taken(kernels, shape, dtype, taken):
    n, width, n_out = shape
    x, weight = mx.zeros((n, width), dtype), mx.zeros((n_out, width), dtype)
    assert small_product.takes(x, weight) == taken


@needs_kernels
@pytest.mark.parametrize(("architecture", "can"), [("sm_75", False), ("sm_80", True), ("sm_120", True), (None, True)])
def test_tensor_cores_for_bf16_are_needed(monkeypatch, kernels, architecture, can):
    monkeypatch.setattr(cuda_compiler, "architecture", lambda: architecture)
    x = mx.zeros((8, 8), mx.bfloat16)
    assert small_product.takes(x, x) == can
