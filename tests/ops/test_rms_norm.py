"""A norm beside its residual stream, with arithmetic of MLX's in the place of the kernel."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from lmxexp.model.block.parallel import Parallel
from lmxexp.model.block.pre_norm import PreNorm
from lmxexp.model.block.sandwich import Sandwich
from lmxexp.model.norm.rmsnorm import RMSNorm
from lmxexp.ops import rms_norm as module
from lmxexp.ops import rms_norm_kernels
from lmxexp.ops.trees import by_path


@pytest.fixture
def ours(monkeypatch):
    """The function with a gradient of its own on any device; of each, whether that had something to add from beside."""
    asked = []

    def gradient(x, weight, of_norm, beside, eps):
        asked.append(beside is not None and mx.any(beside != 0).item())
        of_x, of_weight = mx.vjp(lambda x, w: mx.fast.rms_norm(x, w, eps), [x, weight], [of_norm])[1]
        return of_x if beside is None else of_x + beside, of_weight

    monkeypatch.setattr(module, "is_ours", lambda *_: True)
    monkeypatch.setattr(rms_norm_kernels, "gradient", gradient)
    for made in (module._norm, module._branch):
        made.cache_clear()
    return asked


class Mixer(nn.Module):
    def __init__(self, d_model, layer_idx):
        super().__init__()
        self.proj = nn.Linear(d_model, d_model, bias=False)

    def __call__(self, x, cache=None, segment_ids=None):
        return mx.tanh(self.proj(x))


class FeedForward(Mixer):
    def __init__(self, d_model):
        super().__init__(d_model, 0)

    def __call__(self, x):
        return mx.sin(self.proj(x)), {}


@pytest.mark.parametrize(("kind", "n_beside", "n_norms"), [(PreNorm, 2, 2), (Sandwich, 2, 4), (Parallel, 1, 1)])
def test_gradients_of_blocks(kind, n_beside, n_norms, ours, monkeypatch):
    mx.random.seed(0)
    layers = [kind(8, i, Mixer, FeedForward, RMSNorm) for i in range(2)]
    x, c = mx.random.normal((2, 5, 8)), mx.random.normal((2, 5, 8))

    def loss(parameters, x):
        for layer, own in zip(layers, parameters, strict=True):
            layer.update(own)
            x, _ = layer(x)
        return (x * c).sum()

    def gradients():
        before = [layer.parameters() for layer in layers]
        found = mx.grad(loss, argnums=(0, 1))(before, x)
        for layer, own in zip(layers, before, strict=True):
            layer.update(own)
        return by_path(found)

    got = gradients()
    assert (sum(ours), len(ours)) == (2 * n_beside, 2 * n_norms)
    monkeypatch.setattr(module, "is_ours", lambda *_: False)
    for path, want in gradients().items():
        assert mx.abs(got[path] - want).max().item() < 1e-5, path


def test_another_array_s_norm_is_not_beside_it(ours):
    x, other, weight = mx.ones((2, 4)), mx.zeros((2, 4)), mx.ones((4,))
    with module.beside(x) as stream:
        module.rms_norm(other, weight, 1e-5)
    assert stream[0] is x
    with module.beside(x) as stream:
        module.rms_norm(x, weight, 1e-5)
    assert stream[0] is not x
    assert mx.array_equal(stream[0], x).item()
