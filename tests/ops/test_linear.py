"""Linear layers within `gradients_in_rows`, beside MLX's."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxexp.ops.linear import gradients_in_rows

SHAPES = [(3, 5, 8), (7, 8), (8,), (1, 1, 8)]


def layer(bias: bool) -> nn.Linear:
    made = nn.Linear(8, 6, bias=bias)
    made.update({name: mx.random.normal(a.shape, key=mx.random.key(7)) for name, a in made.parameters().items()})
    return made


def gradients(module, x, weigh, compiled=False):
    """Of the parameters and of x, of a weighted sum of outputs."""

    def loss(parameters, x):
        module.update(parameters)
        return (module(x) * weigh).sum()

    function = mx.grad(loss, argnums=(0, 1))
    before = module.parameters()
    of_parameters, of_x = (mx.compile(function) if compiled else function)(before, x)
    module.update(before)
    return {**of_parameters, "x": of_x}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_mlxs(bias, shape, compiled):
    module, x = layer(bias), mx.random.normal(shape, key=mx.random.key(1))
    weigh = mx.random.normal((*shape[:-1], 6), key=mx.random.key(2))
    value, expected = module(x), gradients(module, x, weigh)
    with gradients_in_rows():
        assert mx.allclose(module(x), value, rtol=1e-6, atol=1e-6)
        ours = gradients(module, x, weigh, compiled)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        assert gradient.shape == expected[name].shape
        assert mx.allclose(gradient, expected[name], rtol=1e-5, atol=1e-5), name


def test_the_gradient_lies_as_the_weight_does():
    module, x = layer(bias=False), mx.random.normal((5, 8))
    weigh = mx.random.normal((5, 6))
    assert np.asarray(gradients(module, x, weigh)["weight"]).strides == (4, 24)  # of MLX's own, in columns
    with gradients_in_rows():
        assert np.asarray(gradients(module, x, weigh)["weight"]).strides == (32, 4)
    assert np.asarray(gradients(module, x, weigh)["weight"]).strides == (4, 24)


@pytest.mark.parametrize("own", [{"x"}, {"weights"}, {"x", "weights"}])
@pytest.mark.parametrize("bias", [False, True])
def test_of_several_members(bias, own):
    """Mapped, and the sum differentiated, as a population's step does."""
    module, n = layer(bias), 3
    x = mx.random.normal((n, 4, 5, 8), key=mx.random.key(3))
    members = {
        name: mx.random.normal((n, *a.shape), key=mx.random.key(i))
        for i, (name, a) in enumerate(module.parameters().items())
    }
    x = x if "x" in own else x[0]
    members = members if "weights" in own else {name: a[0] for name, a in members.items()}
    axes = (0 if "weights" in own else None, 0 if "x" in own else None)

    def value(parameters, x):
        module.update(parameters)
        return mx.sin(module(x)).sum()

    def total(parameters, x):
        return mx.vmap(value, in_axes=axes)(parameters, x).sum()

    function = mx.grad(total, argnums=(0, 1))
    expected = function(members, x)
    with gradients_in_rows():
        ours = function(members, x)
    for a, b in zip([*ours[0].values(), ours[1]], [*expected[0].values(), expected[1]], strict=True):
        assert a.shape == b.shape
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-5)
