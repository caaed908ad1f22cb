"""Layers of one input as one product on CUDA, and what takes it; without such a device as the host computes it."""

from contextlib import nullcontext

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import Batch
from lmxexp.model import recompute
from lmxexp.model.attention.delta import DeltaNet
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.ffn.glu import GatedLinearUnit
from lmxexp.model.position.rope import RoPE
from lmxexp.ops import cuda, fused, joined
from lmxexp.ops.gated import gated, silu_gated_halves
from lmxexp.ops.joined import can_be_joined, joined_product
from lmxexp.ops.linear import gradients_in_rows
from lmxexp.ops.rope import rope, turned_heads
from lmxexp.train import precision
from lmxexp.train.step import to_arrays
from tests.ops.cuda_on_host import HAS_DEVICE, needs_kernels
from tests.train.composed import composed_step

DTYPES = [(mx.float32, 1e-5), (mx.bfloat16, 2**-6)]


def random(*shape, dtype=mx.float32, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


def close(a, b, tolerance):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    assert mx.abs(a - b).max() <= tolerance * max(mx.abs(b).max().item(), 1.0)


def values_and_gradients(function, arrays, seed=9):
    """Of a weighted sum of what the function returns."""

    def loss(*arrays):
        outputs = function(*arrays)
        return sum((y.astype(mx.float32) * random(*y.shape, seed=seed + i)).sum() for i, y in enumerate(outputs))

    return [*function(*arrays), *mx.grad(loss, argnums=list(range(len(arrays))))(*arrays)]


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("widths", [(64, 32, 32), (24, 24), (8,)])
def test_the_product_is_that_of_each(kernels, widths, dtype, tolerance):
    x, weights = random(2, 9, 40, dtype=dtype), [random(n, 40, dtype=dtype, seed=n + i) for i, n in enumerate(widths)]
    layers = [nn.Linear(40, n, bias=False) for n in widths]

    def ours(x, *weights):
        for layer, weight in zip(layers, weights, strict=True):
            layer.weight = weight
        return [joined_product(x, layers)]

    def each(x, *weights):
        return [mx.concatenate([x @ w.T for w in weights], axis=-1)]

    with gradients_in_rows():
        got = values_and_gradients(ours, [x, *weights])
    for a, b in zip(got, values_and_gradients(each, [x, *weights]), strict=True):
        close(a, b, tolerance)


class Two(nn.Module):
    of_one_input = "a", "b"

    def __init__(self, widths, bias=False, frozen=False):
        super().__init__()
        self.a, self.b = (nn.Linear(40, n, bias=bias) for n in widths)
        if frozen:
            self.b.freeze()

    def __call__(self, x):
        layers = self.a, self.b
        return [joined_product(x, layers)] if can_be_joined(x, *layers) else [layer(x) for layer in layers]


@needs_kernels
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
@pytest.mark.parametrize(
    ("case", "is_cast", "is_joined"),
    [
        ({"widths": (24, 64)}, True, True),
        ({"widths": (24, 64), "bias": True}, True, False),
        ({"widths": (24, 63)}, False, False),
        ({"widths": (24, 64), "frozen": True}, False, False),
    ],
    ids=["plain", "with biases", "of odd width", "one not trained"],
)
def test_weights_are_cast_together(kernels, case, is_cast, is_joined, dtype):
    """To the same numbers as each by itself, with the same gradients, and nothing is joined once more."""
    model = nn.Sequential(Two(**case), Two(**case))
    params, x = model.trainable_parameters(), random(3, 40, dtype=dtype)

    def loss(params):
        model.update(params)
        return sum((y.astype(mx.float32) ** 2).mean() for two in model.layers for y in two(x))

    def values(in_type):
        with in_type as used, gradients_in_rows():
            found = tree_flatten({"weights": used, "loss": mx.value_and_grad(loss)(used)})
        model.update(params)
        joins = 0 if kernels is None else sum("joined" in name for name, _ in kernels)
        return found, joins

    each, joins = values(nullcontext(precision.cast(params, dtype)))
    together, more_joins = values(joined.cast_for(model, params, dtype))
    if kernels is not None:
        assert joins == (2 if is_joined else 0)
        assert more_joins - joins == (2 if is_cast else 0)
    for (name, a), (same, b) in zip(together, each, strict=True):
        assert name == same
        close(a, b, 2**-6)
        # On a device, products of a part of an array may be computed by another of its library's kernels.
        assert mx.array_equal(a, b) or (HAS_DEVICE and not name.startswith("weights")), name


@needs_kernels
def test_outside_nothing_is_remembered(kernels):
    model = Two((24, 64))
    with joined.cast_for(model, model.trainable_parameters(), mx.bfloat16):
        assert joined._cast
    assert not joined._cast
    with joined.cast_for(model, model.trainable_parameters(), None) as same:
        assert not joined._cast
        assert same["a"]["weight"] is model.a.weight


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("n_heads", "n_kv_heads", "head_dim"), [(4, 2, 16), (3, 1, 32), (2, 2, 64), (1, 1, 16)])
def test_heads_are_turned_and_parted(kernels, n_heads, n_kv_heads, head_dim, dtype, tolerance):
    """One that ends within a thread's group of heads, and lengths that are no multiple of anything."""
    B, L = 3, 7
    qkv = random(B, L, (n_heads + 2 * n_kv_heads) * head_dim, dtype=dtype)

    def one_by_one(qkv):
        ends = [n_heads * head_dim, (n_heads + n_kv_heads) * head_dim]
        q, k, v = (x.reshape(B, L, -1, head_dim).swapaxes(1, 2) for x in mx.split(qkv, ends, axis=-1))
        turned = (mx.fast.rope(x, head_dim, traditional=False, base=500.0, scale=1.0, offset=0) for x in (q, k))
        return [*turned, v]

    got = values_and_gradients(lambda qkv: turned_heads(qkv, n_heads, n_kv_heads, 500.0), [qkv])
    for a, b in zip(got, values_and_gradients(one_by_one, [qkv]), strict=True):
        close(a, b, tolerance)
    q, k, _ = got[:3]
    mx.eval(q, k)
    own = rope(qkv.reshape(B, L, -1, head_dim).swapaxes(1, 2), 500.0)
    assert mx.array_equal(mx.concatenate([q, k], axis=1), own[:, : n_heads + n_kv_heads])  # as without values beside


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 8), (7, 264)])
def test_halves_are_gated(kernels, shape, dtype, tolerance):
    both = random(*shape[:-1], 2 * shape[-1], dtype=dtype)
    got = values_and_gradients(lambda both: [silu_gated_halves(both)], [both])
    expected = values_and_gradients(lambda both: [gated("silu", *mx.split(both, 2, axis=-1))], [both])
    for a, b in zip(got, expected, strict=True):
        close(a, b, tolerance)


def attention(**settings):
    return GroupedQueryAttention(64, 4, 2, position=lambda **sizes: RoPE(**sizes, theta=100.0), **settings)


LAYERS = {
    "attention": (attention, {"joined_3", "rope_apart", "rope_together"}),
    "attention with a norm": (lambda: attention(qk_norm=lambda head_dim, n_heads: nn.RMSNorm(head_dim)), {"rope"}),
    "attention with biases": (lambda: attention(bias=True), {"rope"}),
    "attention without positions": (lambda: GroupedQueryAttention(64, 4, 2), set()),
    "attention with half of them": (
        lambda: GroupedQueryAttention(64, 4, 2, position=lambda **sizes: RoPE(**sizes, fraction=0.5)),
        set(),
    ),
    "delta rule": (lambda: DeltaNet(64, 2), {"joined_3"}),
    "ffn": (lambda: GatedLinearUnit(64, 96), {"joined_2", "silu_halves", "silu_halves_gradient"}),
    "ffn of another activation": (lambda: GatedLinearUnit(64, 96, "gelu"), set()),
    "ffn of odd width": (lambda: GatedLinearUnit(64, 97), {"silu_gradient"}),
    "ffn with biases": (lambda: GatedLinearUnit(64, 96, bias=True), {"silu_gradient"}),
}


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_what_they_are_one_by_one(kernels, monkeypatch, name, dtype, tolerance):
    make, used = LAYERS[name]
    layer, x = make(), random(2, 13, 64, dtype=dtype)
    layer.set_dtype(dtype)
    names = [name for name, _ in tree_flatten(layer.parameters())]
    arrays = [a for _, a in tree_flatten(layer.parameters())]

    def call(x, *arrays):
        layer.load_weights(list(zip(names, arrays, strict=True)))
        y = layer(x)
        return [y[0] if isinstance(y, tuple) else y]

    with gradients_in_rows():
        got = values_and_gradients(call, [x, *arrays])
        mx.eval(got)
        if kernels is not None:
            small = dtype == mx.bfloat16 and "odd" not in name and "biases" not in name
            products = {"product_rr", "product_rc", "product_cc"} if small else set()
            assert {full.removeprefix("lmxexp_").rsplit("_", 1)[0] for full, _ in kernels} == used | products
        monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
        for a, b in zip(got, values_and_gradients(call, [x, *arrays]), strict=True):
            close(a, b, tolerance)


@needs_kernels
def test_when_layers_are_joined(kernels):
    x, layers = random(3, 64), [nn.Linear(64, 16, bias=False) for _ in range(2)]
    assert not can_be_joined(x, *layers), "no gradient is traced: of few rows the weights are most of what is read"
    with gradients_in_rows():
        assert can_be_joined(x, *layers)
        assert not can_be_joined(x.astype(mx.bfloat16), *layers), "of another type"
        assert not can_be_joined(x, layers[0], nn.Linear(64, 16)), "with a bias"
        assert not can_be_joined(x, layers[0], nn.Linear(64, 15, bias=False)), "not whole packs"
        assert not can_be_joined(x, layers[0], nn.QuantizedLinear(64, 32, bias=False))
        with recompute.light():
            assert not can_be_joined(x, *layers), "what they are given is made once more, for each"
        with fused.mapped():
            assert not can_be_joined(x, *layers), "of several members"
        assert can_be_joined(x, *layers)
    assert not can_be_joined(x, *layers)


def test_without_kernels_nothing_is_joined():
    if not cuda.on_cuda():
        with gradients_in_rows():
            assert not can_be_joined(random(3, 64), nn.Linear(64, 16, bias=False))


@needs_kernels
@pytest.mark.parametrize("remat", ["none", "light", "block"])
def test_what_is_computed_once_more(kernels, monkeypatch, remat):
    """The gradient of a small model, joined or not, whatever is kept for it."""
    small = ["model.d_model=128", "model.n_heads=2", "model.n_layers=2", "model.d_ff=64"]
    step = composed_step(*small, vocab_size=101, remat=remat, compile=False)
    ids = mx.random.randint(0, 101, (2, 17), key=mx.random.key(1))

    def gradient():
        _, gradient, loss, _ = step._gradient(to_arrays(Batch(ids[:, :-1], ids[:, 1:])))
        return [loss, *(g for _, g in tree_flatten(gradient))]

    got = gradient()
    mx.eval(got)
    if kernels is not None:
        assert any("joined" in name for name, _ in kernels) == (remat != "light")
    monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
    for a, b in zip(got, gradient(), strict=True):
        close(a, b, 2e-5)
