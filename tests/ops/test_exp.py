"""exp on CPUs where MLX's is slow, against NumPy in float64 and against MLX."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxexp.ops import exp
from lmxexp.ops.fused import mapped
from lmxexp.ops.gelu import gelu, gelu_tanh
from lmxexp.ops.own_gradient import without_own_gradients

NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def ours(monkeypatch):
    """On every machine: what is tested is plain arithmetic."""
    monkeypatch.setattr(exp, "is_slow", lambda: True)


def randoms(*shape, scale=4.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def softmax64(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu64(x):
    x = x.astype(np.float64)
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def gelu_tanh64(x):
    x = x.astype(np.float64)
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


FUNCTIONS = {
    "gelu": (gelu, gelu64, nn.gelu),
    "gelu_tanh": (gelu_tanh, gelu_tanh64, nn.gelu_approx),
    "sigmoid": (exp.sigmoid, lambda x: 1 / (1 + np.exp(-x.astype(np.float64))), mx.sigmoid),
    "silu": (exp.silu, lambda x: x / (1 + np.exp(-x.astype(np.float64))), lambda x: x * mx.sigmoid(x)),
    "softmax": (exp.softmax, softmax64, lambda x: mx.softmax(x, -1)),
    "logsumexp": (
        exp.logsumexp,
        lambda x: np.log(np.exp(x.astype(np.float64)).sum(-1)),
        lambda x: mx.logsumexp(x, -1),
    ),
}


def test_exp_over_its_whole_range():
    x = np.linspace(-87, 88, 300001).astype(np.float32)
    found = np.array(exp.exp_within(mx.array(x)), np.float64)
    assert np.abs(found / np.exp(x.astype(np.float64)) - 1).max() < 2e-7


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 33), (1, 1)], ids=str)
def test_values(name, shape, compiled):
    function, reference, _ = FUNCTIONS[name]
    x = randoms(*shape)
    found = (mx.compile(function) if compiled else function)(mx.array(x))
    np.testing.assert_allclose(np.array(found), reference(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_those_of_mlx_s(name):
    function, _, other = FUNCTIONS[name]
    x = mx.array(randoms(4, 3, 17, scale=2.0))
    weights = mx.array(randoms(*other(x).shape, seed=1))
    found, want = (mx.grad(lambda x, f=f: (f(x) * weights).sum())(x) for f in (function, other))
    assert mx.allclose(found, want, rtol=1e-5, atol=1e-5).item()
    with without_own_gradients():  # as estimates of memory trace it
        assert mx.array_equal(mx.grad(lambda x: function(x).sum())(x), mx.grad(lambda x: other(x).sum())(x)).item()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mapped_it_is_each_by_itself(name):
    """Values and gradients, as a population takes them."""
    function = FUNCTIONS[name][0]
    x = mx.array(randoms(3, 4, 17))

    def total(x):
        with mapped():
            return mx.vmap(lambda one: mx.square(function(one)).sum())(x).sum()

    each = mx.stack([mx.grad(lambda one: mx.square(function(one)).sum())(one) for one in x])
    for wrap in (lambda f: f, mx.compile):
        found = wrap(mx.grad(total))(x)
        if mx.default_device() == mx.gpu:  # whose compiler fuses products with sums as it finds them
            assert mx.allclose(found, each, rtol=1e-5, atol=1e-6).item()
        else:
            assert mx.array_equal(found, each).item()


def test_extremes():
    np.testing.assert_allclose(np.array(exp.sigmoid(mx.array([-1e30, -100.0, 100.0, 1e30]))), [0, 0, 1, 1], atol=1e-38)
    found = np.array(exp.softmax(mx.array([[0.0, -INF, -1e30], [5.0, 5.0, -INF], [-3e38, -3e38, 0.0]])))
    assert found.tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]
    assert exp.logsumexp(mx.array([1e30, -1e30])).item() == np.float32(1e30)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_number_stays_none(name):
    """A loss that diverged must not look like one that did not."""
    found = FUNCTIONS[name][0](mx.array([[1.0, NAN, 2.0], [1.0, 2.0, 3.0]]))
    rows = np.isnan(np.array(found).reshape(2, -1)).any(axis=1)
    assert rows.tolist() == [True, False]
    assert np.isnan(np.array(exp.softmax(mx.array([NAN, 1.0])))).any()


def test_other_types_are_mlx_s():
    x = mx.array(randoms(3, 5)).astype(mx.bfloat16)
    for function, _, other in FUNCTIONS.values():
        assert mx.array_equal(function(x), other(x)).item()
