"""Functions with a gradient of their own, and without it."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from lmxexp.ops.own_gradient import own_gradient, without_own_gradients


@own_gradient
def doubled(x):
    return 2 * x


@doubled.vjp
def _(primals, cotangent, output):
    return 100 * cotangent


def test_gradient_is_its_own():
    assert mx.grad(doubled)(mx.array(1.0)).item() == 100.0
    with without_own_gradients():
        assert mx.grad(doubled)(mx.array(1.0)).item() == 2.0
    assert mx.grad(doubled)(mx.array(1.0)).item() == 100.0


def test_another_thread_has_them():
    with without_own_gradients(), ThreadPoolExecutor(1) as other:
        assert other.submit(lambda: mx.grad(doubled)(mx.array(1.0)).item()).result() == 100.0
        assert mx.grad(doubled)(mx.array(1.0)).item() == 2.0


def test_mlx_traces_it_without():
    names = []
    note = lambda event: names.append(event.get("name"))
    with pytest.raises(ValueError, match="CustomTransforms"):
        mx.export_function(note, lambda x: doubled(x), mx.array(1.0))
    with without_own_gradients():
        mx.export_function(note, lambda x: doubled(x), mx.array(1.0))
    assert "Multiply" in names
