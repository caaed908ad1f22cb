"""A gated product with a gradient of its own, against MLX's in fp32."""

import re

import mlx.core as mx
import pytest

from lmxexp.ops import fused
from lmxexp.ops.activation import activation
from lmxexp.ops.gated import _gated
from lmxexp.ops.own_gradient import without_own_gradients


def problem(shape, dtype):
    return [mx.random.normal(shape, key=mx.random.key(i)).astype(dtype) for i in range(3)]


def expected(name, gate, up, cotangent):
    """The product and both gradients."""
    wide = [a.astype(mx.float32) for a in (gate, up, cotangent)]
    value, gradients = mx.vjp(lambda gate, up: activation(name)(gate) * up, wide[:2], wide[2:])
    return [*value, *gradients]


def assert_close(ours, others, tolerance):
    for a, b in zip(ours, others, strict=True):
        assert a.shape == b.shape
        assert mx.all(mx.abs(a.astype(mx.float32) - b) <= tolerance * mx.maximum(mx.abs(b), 1.0))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 1), (7, 129)])
@pytest.mark.parametrize("name", ["silu", "gelu", "relu2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 4e-6), (mx.bfloat16, 2**-7)])
def test_value_and_gradients(name, shape, dtype, tolerance, compiled):
    gate, up, cotangent = problem(shape, dtype)

    def function(gate, up):
        value, gradients = mx.vjp(_gated(name), [gate, up], [cotangent])
        return [*value, *gradients]

    ours = (mx.compile(function) if compiled else function)(gate, up)
    assert {a.dtype for a in ours} == {dtype}
    assert_close(ours, expected(name, gate, up, cotangent), tolerance)


@pytest.mark.parametrize("name", ["silu", "relu2"])  # of a longer one, MLX makes two
def test_compiled_by_itself_and_not_within_what_is_compiled(name, tmp_path):
    gate, up, _ = problem((3, 16), mx.bfloat16)
    mx.eval(gate, up)
    operations = lambda file: re.findall(r'label ="(\w+)"', (tmp_path / file).read_text())
    with without_own_gradients():
        mx.export_to_dot(str(tmp_path / "by_itself"), _gated(name)(gate, up))
        traced = []
        mx.export_function(lambda event: traced.append(event.get("name")), lambda *a: _gated(name)(*a), gate, up)
    assert [name[:8] for name in operations("by_itself")] == ["Compiled"]
    assert "Multiply" in traced
    assert not any(name.startswith("Compiled") for name in traced if name)


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_mapped_over_members(name):
    gate, up, cotangent = problem((5, 3, 16), mx.float32)

    def loss(gate, up):
        with fused.mapped():  # the members lie along axis 1 of the gates, and share what is above them
            return (mx.vmap(_gated(name), in_axes=(1, None))(gate, up) * mx.swapaxes(cotangent, 0, 1)).sum()

    of_gate, of_up = mx.grad(loss, argnums=(0, 1))(gate, up[:, 0])
    others = [expected(name, gate[:, i], up[:, 0], cotangent[:, i]) for i in range(3)]
    assert_close([of_gate[:, i] for i in range(3)], [other[1] for other in others], 4e-6)
    assert_close([of_up], [sum(other[2] for other in others)], 1e-5)
