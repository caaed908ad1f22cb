"""Fused operations mapped over members, against each member by itself, for every choice of what is mapped over."""

import io
import re
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import pytest

from lmxexp.ops import fused
from lmxexp.ops.experts import bring_back, copy_to_experts, grouped_matmul, sort_by_expert
from lmxexp.ops.fused import mapped
from tests.contracts.small_models import relative_error

N = 3


class Case(NamedTuple):
    name: str
    """Of MLX's operation."""
    call: Callable[..., mx.array]
    """``call(operation, *arrays)``."""
    arrays: Callable[[Callable[..., mx.array]], list[mx.array]]
    """``arrays(draw)``: the arrays of one member; ``draw(shape)`` is normal noise, another each time."""
    n_calls: int = 1
    """Of the kernel, for all members."""


def qkv(draw):
    return [draw((2, 4, 5, 8)), draw((2, 2, 7, 8)), draw((2, 2, 7, 6))]


def attend(op, q, k, v, mask=None, sinks=None):
    return op(q, k, v, scale=0.3, mask=mask, sinks=sinks)


def with_mask(*shape, dtype=mx.float32, sinks=False):
    """A boolean mask lets the first key be seen, so that no row is empty."""

    def arrays(draw):
        mask = draw(shape) if dtype != mx.bool_ else (draw(shape) > 0) | (mx.arange(shape[-1]) == 0)
        return [*qkv(draw), mask, *([draw((4,))] if sinks else [])]

    return Case("scaled_dot_product_attention", attend, arrays)


def turn(op, x, offset=0, freqs=None, traditional=False, dims=4):
    base = None if freqs is not None else 100.0
    return op(x, dims, traditional=traditional, base=base, scale=1.0, offset=offset, freqs=freqs)


def ascending(draw, n, n_experts):
    return mx.sort(mx.abs(draw((n,)) * 10).astype(mx.uint32) % n_experts)


def gather(op, a, b, lhs=None, rhs=None):
    return op(a, b, lhs, rhs)


def normed(op, x, *scales):
    return op(x, *scales, 1e-5)


CASES = {
    "attention": Case("scaled_dot_product_attention", attend, qkv),
    "attention causal": Case("scaled_dot_product_attention", lambda op, *x: attend(op, *x, mask="causal"), qkv),
    "attention sinks": Case(
        "scaled_dot_product_attention",
        lambda op, q, k, v, sinks: attend(op, q, k, v, "causal", sinks),
        lambda draw: [*qkv(draw), draw((4,))],
    ),
    "attention mask of positions": with_mask(5, 7, dtype=mx.bool_),
    "attention mask of documents": with_mask(2, 1, 5, 7, dtype=mx.bool_),
    "attention mask of heads": with_mask(1, 4, 5, 7),
    "attention mask of keys": with_mask(7),
    "attention mask of all": with_mask(2, 4, 5, 7),
    "attention mask of documents and sinks": with_mask(2, 1, 5, 7, dtype=mx.bool_, sinks=True),
    "attention mask of heads and sinks": with_mask(4, 5, 7, sinks=True),
    "rope": Case("rope", turn, lambda draw: [draw((2, 3, 5, 6))]),
    "rope interleaved": Case(
        "rope", lambda op, x: turn(op, x, 3, traditional=True, dims=6), lambda draw: [draw((2, 5, 6))]
    ),
    "rope offset": Case("rope", turn, lambda draw: [draw((2, 3, 5, 6)), mx.abs(draw(()) * 10).astype(mx.int32)]),
    "rope offsets": Case("rope", turn, lambda draw: [draw((2, 3, 5, 6)), mx.abs(draw((2,)) * 10).astype(mx.int32)]),
    "rope frequencies": Case(
        "rope", lambda op, x, freqs: turn(op, x, 2, mx.exp(freqs)), lambda draw: [draw((2, 3, 5, 6)), draw((2,))], N
    ),
    "rms_norm": Case("rms_norm", normed, lambda draw: [draw((2, 5, 8)), draw((8,))]),
    "rms_norm of a vector": Case("rms_norm", normed, lambda draw: [draw((8,)), draw((8,))]),
    "rms_norm unscaled": Case("rms_norm", lambda op, x: op(x, None, 1e-5), lambda draw: [draw((2, 5, 8))]),
    "layer_norm": Case("layer_norm", normed, lambda draw: [draw((2, 5, 8)), draw((8,)), draw((8,))]),
    "layer_norm without bias": Case(
        "layer_norm", lambda op, x, w: op(x, w, None, 1e-5), lambda draw: [draw((5, 8)), draw((8,))]
    ),
    "layer_norm without weight": Case(
        "layer_norm", lambda op, x, b: op(x, None, b, 1e-5), lambda draw: [draw((5, 8)), draw((8,))]
    ),
    "gather_mm ascending": Case(
        "gather_mm",
        lambda op, a, b, rhs: op(a, b, rhs_indices=rhs, sorted_indices=True),
        lambda draw: [draw((7, 1, 4)), draw((3, 4, 5)), ascending(draw, 7, 3)],
    ),
    "gather_mm both": Case(
        "gather_mm",
        gather,
        lambda draw: [draw((2, 3, 2, 4)), draw((3, 4, 5)), ascending(draw, 4, 6), ascending(draw, 2, 3)[:, None]],
    ),
    "gather_mm one matrix": Case(
        "gather_mm",
        lambda op, a, b, rhs: gather(op, a, b, None, rhs),
        lambda draw: [draw((1, 2, 4)), draw((3, 4, 5)), ascending(draw, 6, 3).reshape(2, 3)],
    ),
    "gather_mm without indices": Case("gather_mm", gather, lambda draw: [draw((3, 2, 4)), draw((3, 4, 5))]),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def operation(name):
    return getattr(mx if name == "gather_mm" else mx.fast, name)


def draws(seed):
    key = mx.random.key(seed)

    def draw(shape):
        nonlocal key
        key, subkey = mx.random.split(key)
        return mx.random.normal(shape, key=subkey)

    return draw


def on_a_gpu():
    return mx.default_device() == mx.gpu


def floats(arrays):
    return tuple(i for i, x in enumerate(arrays) if mx.issubdtype(x.dtype, mx.floating))


def differentiable(case, arrays):
    """MLX's kernel for positions has no gradient for frequencies; where there is no kernel, there is one."""
    return (0,) if case.name == "rope" and on_a_gpu() else floats(arrays)


def value_and_gradients(function, arrays, weight=None, of=None):
    """Of the sum of the result times noise: a plain sum would hide what is in the wrong place."""

    def loss(*arrays):
        y = function(*arrays)
        noise = mx.random.normal(y.shape, key=mx.random.key(5)) if weight is None else weight
        return (y * noise.astype(y.dtype)).astype(mx.float32).sum(), y

    (_, y), gradients = mx.value_and_grad(loss, argnums=of or floats(arrays))(*arrays)
    return [y, *([gradients] if isinstance(gradients, mx.array) else gradients)]


def operations(arrays):
    """Names of the primitives that ``arrays`` are computed by."""
    dot = io.StringIO()
    mx.export_to_dot(dot, *arrays)
    return re.findall(r'label ="([^"]+)", shape=rectangle', dot.getvalue())


@cases
@pytest.mark.parametrize("axis", [0, 1])
def test_mapped_as_one_by_one(case, axis):
    """On a CPU the values are the same bits. Gradients of what all share are summed in another order."""
    members = [case.arrays(draws(i)) for i in range(N)]
    call = lambda *arrays: case.call(operation(case.name), *arrays)
    for own in product([False, True], repeat=len(members[0])):
        if not any(own):
            continue
        axes = tuple(min(axis, x.ndim) if mine else None for mine, x in zip(own, members[0], strict=True))
        each = [[m[i] if mine else members[0][i] for i, mine in enumerate(own)] for m in members]
        stacked = [members[0][i] if a is None else mx.stack([m[i] for m in members], a) for i, a in enumerate(axes)]
        alone = [call(*arrays) for arrays in each]
        noise = mx.random.normal((N, *alone[0].shape), key=mx.random.key(9))

        def together(*arrays, axes=axes):
            with mapped():
                return mx.vmap(call, in_axes=axes)(*arrays)

        of = differentiable(case, stacked)
        y, *gradients = value_and_gradients(together, stacked, noise, of)
        assert y.dtype == alone[0].dtype
        if mx.default_device() == mx.cpu:
            assert mx.array_equal(y, mx.stack(alone)).item(), own
        assert mx.allclose(y, mx.stack(alone), rtol=1e-6, atol=1e-6).item(), own
        gradients_alone = [value_and_gradients(call, arrays, noise[i], of)[1:] for i, arrays in enumerate(each)]
        for place, i in enumerate(of):
            want = [g[place] for g in gradients_alone]
            want = mx.stack(want).sum(axis=0) if axes[i] is None else mx.stack(want, axes[i])
            assert relative_error(gradients[place], want) < 1e-6, (own, i)


@cases
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["fp32", "bf16"])
def test_not_mapped_as_the_operation_itself(case, dtype):
    """To the bit, also of the gradients; `gather_mm` alone is computed otherwise where nothing is mapped over."""
    if case.name == "gather_mm" and dtype != mx.float32 and mx.default_device() == mx.cpu:
        pytest.skip("MLX multiplies fp32 alone here")
    arrays = [x.astype(dtype) if mx.issubdtype(x.dtype, mx.floating) else x for x in case.arrays(draws(1))]
    call = lambda *arrays: case.call(operation(case.name), *arrays)
    if len(arrays) == 2 and case.name == "rope" and len(floats(arrays)) == 2 and on_a_gpu():
        pytest.skip("MLX's kernel has no gradient for frequencies")
    want = value_and_gradients(call, arrays)
    with mapped():
        got = value_and_gradients(call, arrays)
    tolerance = 1e-6 if dtype == mx.float32 else 2**-6
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        if case.name == "gather_mm":
            assert relative_error(a, b) < tolerance
        else:
            assert mx.array_equal(a, b).item()


@pytest.mark.parametrize("name", ["attention causal", "rope", "rms_norm", "layer_norm"])
def test_compiled(name):
    """Mapped or not, and the trace alone lies within `mapped`."""
    case = CASES[name]
    members = [case.arrays(draws(i)) for i in range(N)]
    stacked = [mx.stack(list(x)) for x in zip(*members, strict=True)]
    call = lambda *arrays: case.call(operation(case.name), *arrays)
    alone, together = mx.compile(lambda *x: value_and_gradients(call, x)), mx.vmap(call)
    want = alone(*members[0])
    with mapped():
        for a, b in zip(mx.compile(lambda *x: value_and_gradients(call, x))(*members[0]), want, strict=True):
            assert mx.array_equal(a, b).item()
        compiled = mx.compile(lambda *x: value_and_gradients(together, x))
        eager = value_and_gradients(together, stacked)
        compiled(*stacked)
    for a, b in zip(compiled(*stacked), eager, strict=True):
        assert mx.allclose(a, b, rtol=1e-5, atol=1e-6).item()


@cases
def test_one_call_of_the_kernel(case, monkeypatch):
    """With all members in it. MLX would call it with what looks like one member, and map what that is made of."""
    shapes = []
    module, real = (mx if case.name == "gather_mm" else mx.fast), operation(case.name)
    monkeypatch.setattr(module, case.name, lambda x, *rest, **more: shapes.append(x.shape) or real(x, *rest, **more))
    arrays = case.arrays(draws(1))
    stacked = [mx.stack([x] * N) for x in arrays]
    with mapped():
        mx.eval(mx.vmap(lambda *x: case.call(operation(case.name), *x))(*stacked))
    whole = [shape for shape in shapes if mx.zeros(shape).size == N * arrays[0].size]
    assert len(whole) == (1 if case.n_calls == 1 else 0)
    if case.name != "gather_mm":  # called once to see what it returns
        assert len(shapes) == 1 + case.n_calls


@cases
def test_nothing_is_taken_apart(case):
    """The mapped graph, with gradients, holds the kernels of a single member's, as often, and no others. (On a CPU MLX
    itself puts plain operations in their place, but for `gather_mm`.)"""
    kernels = {"RMSNorm", "RMSNormVJP", "LayerNorm", "LayerNormVJP", "RoPE", "GatherMM", "SegmentedMM"}
    kernels |= {"ScaledDotProductAttention", "ScaledDotProductAttentionVJP"}
    apart = {"Softmax", "Matmul", "Rsqrt", "Cos", "Sin"}
    arrays = case.arrays(draws(1))
    stacked = [mx.stack([x] * N) for x in arrays]
    call = lambda *x: case.call(operation(case.name), *x)
    mx.eval(arrays, stacked)
    count = lambda names: {n: names.count(n) for n in kernels | apart if n in names}
    of = differentiable(case, arrays)
    want = count(operations(value_and_gradients(call, arrays, of=of)))
    with mapped():
        got = count(operations(value_and_gradients(mx.vmap(call), stacked, of=of)))
    assert got == {name: n * case.n_calls for name, n in want.items()}


def test_mlx_alone_cannot():
    """Or `gather_mm` needs no rule any more."""
    case = CASES["gather_mm ascending"]
    stacked = [mx.stack([x] * N) for x in case.arrays(draws(1))]
    with pytest.raises(ValueError, match="GatherMM"):
        mx.vmap(lambda *x: case.call(mx.gather_mm, *x))(*stacked)


@pytest.mark.parametrize("dtypes", list(product([mx.float32, mx.bfloat16], repeat=3)))
def test_own_scales_round_as_the_kernel(dtypes):
    draw = draws(3)
    x, w, b = (draw(shape).astype(dtype) for shape, dtype in zip([(N, 4, 8), (N, 8), (N, 8)], dtypes, strict=True))
    for call in (lambda x, w, b: mx.fast.rms_norm(x, w, 1e-5), lambda x, w, b: mx.fast.layer_norm(x, w, b, 1e-5)):
        with mapped():
            y = mx.vmap(call)(x, w, b)
        want = mx.stack([call(x[i], w[i], b[i]) for i in range(N)])
        assert y.dtype == want.dtype
        if on_a_gpu():  # where the kernel multiplies and adds with one rounding
            ulp = mx.finfo(y.dtype).eps
            assert mx.allclose(y.astype(mx.float32), want.astype(mx.float32), rtol=2 * ulp, atol=2 * ulp).item()
        else:
            assert mx.array_equal(y, want).item()


@pytest.mark.parametrize("shared", [False, True], ids=["experts of each", "experts of all"])
def test_experts(shared):
    """All three steps of a mixture, whose moves have gradients of their own."""

    def mixture(x, weight, chosen):
        order = sort_by_expert(chosen)
        return bring_back(grouped_matmul(copy_to_experts(x, order), weight, order.experts), order)

    draw = draws(2)
    x, weight, chosen = draw((N, 5, 4)), draw((N, 3, 6, 4)), mx.abs(draw((N, 5, 2)) * 10).astype(mx.uint32) % 3
    axes = (0, None if shared else 0, 0)
    weight = weight[0] if shared else weight
    noise = draw((N, 10, 6))

    def together(x, weight, chosen):
        with mapped():
            return mx.vmap(mixture, in_axes=axes)(x, weight, chosen)

    def one_by_one(x, weight, chosen):
        return mx.stack([mixture(x[i], weight if shared else weight[i], chosen[i]) for i in range(N)])

    got, want = (value_and_gradients(f, [x, weight, chosen], noise) for f in (together, one_by_one))
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-6


def test_moves_of_members_keep_their_gradient():
    """MLX's own would add rows in any order: nothing is scattered."""
    draw = draws(2)
    x, chosen = draw((N, 5, 4)), mx.abs(draw((N, 5, 2)) * 10).astype(mx.uint32) % 3

    def move(x, chosen):
        order = sort_by_expert(chosen)
        return bring_back(copy_to_experts(x, order), order)

    names = operations(value_and_gradients(mx.vmap(move), [x, chosen]))
    assert "Gather" in names
    assert not [name for name in names if name.startswith("Scatter")]


def test_names_are_put_back():
    names = ("scaled_dot_product_attention", "rope", "rms_norm", "layer_norm", "gather_mm")
    before = [operation(name) for name in names]
    ours = [fused.attention, fused.rope, fused.rms_norm, fused.layer_norm, fused.gather_mm]
    with mapped():
        with mapped():
            assert [operation(name) for name in names] == ours
        assert [operation(name) for name in names] == ours
    assert [operation(name) for name in names] == before
    with pytest.raises(ValueError), mapped():
        mx.vmap(mx.fast.rms_norm)(mx.zeros((2, 3)), mx.zeros((3, 3)), 1e-5)
    assert [operation(name) for name in names] == before


def test_modules_of_mlx_are_whole(monkeypatch):
    shapes = []
    real = mx.fast.layer_norm
    monkeypatch.setattr(mx.fast, "layer_norm", lambda x, *rest: shapes.append(x.shape) or real(x, *rest))
    norm = nn.LayerNorm(8)
    with mapped():
        mx.vmap(norm)(mx.zeros((N, 4, 8)))
    assert (N, 4, 8) in shapes


def test_functions_are_made_once(monkeypatch):
    """Or each trace would leave some behind."""
    made = []
    real = mx.custom_function
    monkeypatch.setattr(mx, "custom_function", lambda function: made.append(function) or real(function))
    x = mx.zeros((N, 2, 4, 8))
    for offset in (101, 101, 102, 102):  # no other test's
        with mapped():
            mx.vmap(lambda x, offset=offset: turn(mx.fast.rope, x, offset))(x)
    assert len(made) == 2
