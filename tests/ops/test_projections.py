"""Linear layers of one input, with the gradient that CUDA devices use."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lmxexp.ops import projections as module


@pytest.mark.parametrize("widths", [(6,), (6, 4), (6, 4, 10)])
def test_gradients(widths):
    """Against those of MLX, which adds products up after they are written."""
    x = mx.random.normal((2, 5, 8), key=mx.random.key(0))
    weights = [mx.random.normal((n, 8), key=mx.random.key(n)) for n in widths]
    c = [mx.random.normal((2, 5, n), key=mx.random.key(2 * n)) for n in widths]

    def loss(of, x, *weights):
        return sum((y * g).sum() for y, g in zip(of(x, *weights), c, strict=True))

    arguments = list(range(1 + len(widths)))
    got = mx.compile(mx.grad(lambda *a: loss(module._products, *a), argnums=arguments))(x, *weights)
    want = mx.grad(lambda *a: loss(lambda x, *ws: [x @ w.T for w in ws], *a), argnums=arguments)(x, *weights)
    for a, b in zip(got, want, strict=True):
        assert np.abs(np.array(a) - np.array(b)).max() < 1e-5


def test_layers_with_biases_or_of_another_kind_are_called(monkeypatch):
    monkeypatch.setattr(module.cuda, "usable", lambda: True)
    x = mx.random.normal((3, 8), key=mx.random.key(0))
    plain, biased = nn.Linear(8, 4, bias=False), nn.Linear(8, 4)
    monkeypatch.setattr(module, "_products", lambda x, *weights: ["products of our own"] * len(weights))
    assert module.projections(x, [plain, plain]) == ["products of our own"] * 2
    for layers in ([plain, biased], [plain, nn.Sequential(plain)]):
        for got, layer in zip(module.projections(x, layers), layers, strict=True):
            assert mx.array_equal(got, layer(x)).item()
    assert module.projections(x.astype(mx.bfloat16), [plain])[0].dtype == mx.float32
