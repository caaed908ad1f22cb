"""The chunk-parallel delta rule and linear attention against float64 loops over tokens."""

import itertools
import math

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops.chunks import affine_scan, decayed_products, reset_at_documents
from lmxexp.ops.delta_rule import delta_rule_flops, gated_delta_rule
from lmxexp.ops.linear_attention import linear_attention, linear_attention_flops
from lmxexp.ops.short_conv import causal_conv
from lmxexp.ops.unit_lower import unit_lower_inverse
from tests.reference import recurrent

B, H, C, M = 2, 2, 8, 6
DECAYS = ["none", "head", "channel", "strong head", "strong channel", "now and then"]


def inputs(length, decay, seed=0, dtype=np.float32):
    """Queries, keys of length one, values, betas and logarithms of decays; and a state to start from."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(B, H, length, d)) for d in (C, C, M))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    beta = rng.uniform(0, 1, (B, H, length))
    per_channel = (B, H, length, C)
    log_decay = {
        "none": None,
        "head": -rng.uniform(0, 0.3, (B, H, length)),
        "channel": -rng.uniform(0, 0.3, per_channel),
        # Hundreds of times more than exp can take, next to decays that leave nearly everything.
        "strong head": -rng.choice([0.01, 300.0], (B, H, length), p=[0.8, 0.2]),
        "strong channel": -rng.choice([0.01, 300.0], per_channel, p=[0.8, 0.2]),
        "now and then": -rng.choice([0.01, 30.0], (B, H, length, 1), p=[0.9, 0.1]) * rng.uniform(0.5, 1, per_channel),
    }[decay]
    state = rng.normal(size=(B, H, C, M))
    cut = lambda a: None if a is None else a.astype(dtype)
    return tuple(map(cut, (q, k, v, beta, log_decay, state)))


def to_mlx(arrays):
    return tuple(None if a is None else mx.array(a) for a in arrays)


def loop(q, k, v, beta, log_decay, state):
    """The reference, head by head; without betas, of linear attention."""
    q, k, v, state = (a.astype(np.float64) for a in (q, k, v, state))
    y, after = np.zeros(v.shape), np.zeros(state.shape)
    for b, h in itertools.product(range(B), range(H)):
        decay = np.ones(k.shape[2:])
        if log_decay is not None:
            g = log_decay[b, h].astype(np.float64)
            decay = np.exp(g if g.ndim == 2 else g[:, None] * np.ones(C))
        if beta is None:
            y[b, h], after[b, h] = recurrent.additive_memory(q[b, h], k[b, h], v[b, h], decay, state[b, h])
        else:
            betas = beta[b, h].astype(np.float64)
            y[b, h], after[b, h] = recurrent.delta_rule(q[b, h], k[b, h], v[b, h], betas, decay, state[b, h])
    return y, after


def error(got, want):
    got = np.array(got.astype(mx.float32), dtype=np.float64)
    return np.abs(got - want).max() / np.abs(want).max()


@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (3, 64), (23, 5), (130, 64), (97, 16), (48, 4)])
@pytest.mark.parametrize("decay", DECAYS)
def test_chunked_equals_the_loop(decay, length, chunk):
    arrays = inputs(length, decay)
    q, k, v, beta, log_decay, state = to_mlx(arrays)
    want, want_state = loop(*arrays)
    y, after = gated_delta_rule(q, k, v, beta, log_decay, state, chunk)
    assert error(y, want) < 2e-6
    assert error(after, want_state) < 2e-6
    want, want_state = loop(*arrays[:3], None, *arrays[4:])
    y, after = linear_attention(q, k, v, log_decay, state, chunk)
    assert error(y, want) < 2e-6
    assert error(after, want_state) < 2e-6


@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_state_carries_over_any_split(decay):
    q, k, v, beta, log_decay, _ = to_mlx(inputs(41, decay))
    want, want_state = gated_delta_rule(q, k, v, beta, log_decay, chunk=8)
    want_linear, _ = linear_attention(q, k, v, log_decay, chunk=8)
    for split in ([1] * 41, [17, 24], [40, 1], [1, 7, 33]):
        ends = np.cumsum(split)[:-1].tolist()
        present = [a for a in (q, k, v, beta, log_decay) if a is not None]
        pieces = zip(*(mx.split(a, ends, axis=2) for a in present), strict=True)
        state = linear_state = None
        ys, linear_ys = [], []
        for q_, k_, v_, beta_, *g_ in pieces:
            y, state = gated_delta_rule(q_, k_, v_, beta_, *(g_ or [None]), state, 8)
            ys.append(y)
            y, linear_state = linear_attention(q_, k_, v_, *(g_ or [None]), linear_state, 8)
            linear_ys.append(y)
        assert error(mx.concatenate(ys, axis=2), np.array(want)) < 2e-6
        assert error(state, np.array(want_state)) < 2e-6
        assert error(mx.concatenate(linear_ys, axis=2), np.array(want_linear)) < 2e-6


@pytest.mark.parametrize("decay", ["none", "head", "channel", "strong head", "strong channel"])
def test_gradients_equal_those_of_the_recurrence(decay):
    """Of every input and the state, against the one-token form differentiated by MLX; and that against differences."""
    arrays = [a for a in to_mlx(inputs(21, decay)) if a is not None]

    def loss(step, *arrays):
        q, k, v, beta, *g, state = arrays
        y, state = step(q, k, v, beta, g[0] if g else None, state)
        return (y * mx.sin(mx.arange(y.size).reshape(y.shape))).sum() + (state * state).sum()

    def one_by_one(q, k, v, beta, g, state):
        ys = []
        for t in range(q.shape[2]):
            at = slice(t, t + 1)
            y, state = gated_delta_rule(
                q[:, :, at], k[:, :, at], v[:, :, at], beta[:, :, at], None if g is None else g[:, :, at], state
            )
            ys.append(y)
        return mx.concatenate(ys, axis=2), state

    every = tuple(range(len(arrays)))
    want = mx.grad(lambda *a: loss(one_by_one, *a), argnums=every)(*arrays)
    got = mx.grad(lambda *a: loss(lambda *b: gated_delta_rule(*b, chunk=5), *a), argnums=every)(*arrays)
    for a, b in zip(got, want, strict=True):
        assert mx.isfinite(a).all().item()
        assert error(a, np.array(b)) < 1e-5


@pytest.mark.parametrize("decay", ["head", "channel"])
def test_gradients_equal_finite_differences(decay):
    arrays = inputs(11, decay, dtype=np.float64)
    rng = np.random.default_rng(5)
    weights = rng.normal(size=arrays[2].shape)
    directions = [rng.normal(size=a.shape) for a in arrays]
    of_linear = [d for i, d in enumerate(directions) if i != 3]

    def reference(step, beta=True):
        moved = [a + step * d for a, d in zip(arrays, directions, strict=True)]
        if not beta:
            moved[3] = None
        return (loop(*moved)[0] * weights).sum()

    w, single = mx.array(weights.astype(np.float32)), [mx.array(a.astype(np.float32)) for a in arrays]
    got = mx.grad(lambda *a: (gated_delta_rule(*a, chunk=4)[0] * w).sum(), argnums=(0, 1, 2, 3, 4, 5))(*single)
    slope = sum((np.array(g) * d).sum() for g, d in zip(got, directions, strict=True))
    want = (reference(1e-6) - reference(-1e-6)) / 2e-6
    assert abs(slope - want) < 1e-4 * abs(want)
    del single[3]
    got = mx.grad(lambda *a: (linear_attention(*a, chunk=4)[0] * w).sum(), argnums=(0, 1, 2, 3, 4))(*single)
    slope = sum((np.array(g) * d).sum() for g, d in zip(got, of_linear, strict=True))
    want = (reference(1e-6, beta=False) - reference(-1e-6, beta=False)) / 2e-6
    assert abs(slope - want) < 1e-4 * abs(want)


@pytest.mark.parametrize(("beta", "bound"), [(0.999, 1e-6), (1.0, 1e-6), (2.0, 5e-4)])
def test_keys_that_are_all_alike(beta, bound):
    """The triangular system is at its worst: powers of its matrix grow like binomials. At beta 2, where each step is a
    reflection, a block of the inverse is a sum of 32 x 32 products of size 8, of which 2 is left: 2**12 times the
    rounding of fp32, 2**-24, twice. What is lost of it depends on the order in which a BLAS adds up."""
    length = 200
    q, k, v, _, _, state = inputs(length, "none")
    k = np.broadcast_to(k[:, :, :1], k.shape)
    arrays = (q, k, v, np.full((B, H, length), beta, np.float32), None, state)
    y, after = gated_delta_rule(*to_mlx(arrays))
    want, want_state = loop(*arrays)
    assert error(y, want) < bound
    assert error(after, want_state) < bound


def products_traced(function, *args):
    """FLOPs of the products of matrices that the outputs need."""
    flops = 0

    def note(event):
        nonlocal flops
        if event["type"] == "primitive" and event["name"] in ("Matmul", "AddMM"):
            (_, shape, _), *_ = event["inputs"]
            (_, result, _), *_ = event["outputs"]
            flops += 2 * math.prod(result) * shape[-1]

    mx.export_function(note, function, *args)
    return flops


@pytest.mark.parametrize(("length", "chunk"), [(1, 64), (40, 64), (100, 64), (24, 5), (17, 3), (512, 16)])
@pytest.mark.parametrize("decay", ["none", "head", "channel"])
def test_flops_are_those_of_the_products(decay, length, chunk):
    arrays = [a[:1, :1] for a in to_mlx(inputs(length, decay))[:5] if a is not None]
    per_channel = decay == "channel"
    traced = products_traced(lambda *a: gated_delta_rule(*a, chunk=chunk)[0], *arrays)
    assert delta_rule_flops(length, C, M, chunk, per_channel) == traced
    del arrays[3]
    traced = products_traced(lambda *a: linear_attention(*a, chunk=chunk)[0], *arrays)
    assert linear_attention_flops(length, C, M, chunk, per_channel) == traced


def test_bf16_comes_back_and_is_computed_in_fp32():
    arrays = to_mlx(inputs(70, "channel"))
    low = [a.astype(mx.bfloat16) for a in arrays]
    exact = [a.astype(mx.float32) for a in low]
    y, state = gated_delta_rule(*low, chunk=16)
    assert y.dtype == mx.bfloat16
    assert state.dtype == mx.float32
    want, want_state = gated_delta_rule(*exact, chunk=16)
    assert mx.array_equal(y, want.astype(mx.bfloat16)).item()
    assert mx.array_equal(state, want_state).item()


def test_a_document_starts_from_nothing():
    """As if each document had come alone; an id that comes back is another document."""
    ids = mx.array([[0] * 9 + [1] * 5 + [0] * 3 + [2] * 20])
    q, k, v, beta, log_decay, _ = (None if a is None else a[:1] for a in to_mlx(inputs(37, "channel")))
    for g in (None, log_decay, log_decay[..., 0]):
        got, _ = gated_delta_rule(q, k, v, beta, reset_at_documents(g, ids), chunk=8)
        linear, _ = linear_attention(q, k, v, reset_at_documents(g, ids), chunk=8)
        for start, end in ((0, 9), (9, 14), (14, 17), (17, 37)):
            q_, k_, v_, beta_, g_ = (None if a is None else a[:, :, start:end] for a in (q, k, v, beta, g))
            want, _ = gated_delta_rule(q_, k_, v_, beta_, g_, chunk=8)
            assert error(got[:, :, start:end], np.array(want)) < 2e-6
            want, _ = linear_attention(q_, k_, v_, g_, chunk=8)
            assert error(linear[:, :, start:end], np.array(want)) < 2e-6


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 32, 64, 100])
def test_inverse_of_a_unit_lower_triangle(n):
    rng = np.random.default_rng(n)
    a = rng.uniform(-1, 1, (2, 3, n, n)).astype(np.float32) / n**0.5
    want = np.linalg.inv(np.eye(n) + np.tril(a.astype(np.float64), -1))
    got = np.array(unit_lower_inverse(mx.array(a)))
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-6
    assert (np.triu(got, 1) == 0).all()


@pytest.mark.parametrize("n", [1, 2, 7, 16, 33, 64])
def test_products_with_a_decay_per_channel(n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, 2, n, 5)).astype(np.float32)
    g = -rng.choice([0.01, 3.0, 500.0], (2, n, 5)).astype(np.float32)
    want = np.zeros((2, n, n))
    for b, i in itertools.product(range(2), range(n)):
        for j in range(i + 1):
            decay = np.exp(g[b, j + 1 : i + 1].astype(np.float64).sum(0))
            want[b, i, j] = (x[b, i].astype(np.float64) * y[b, j] * decay).sum()
    got = np.array(decayed_products(mx.array(x), mx.array(y), mx.array(g)))
    assert np.abs(got - want).max() < 2e-6 * np.abs(want).max()


@pytest.mark.parametrize("n", [1, 4, 5, 6, 7, 8, 13, 32])
def test_scan(n):
    rng = np.random.default_rng(n)
    p, q, state = rng.normal(size=(2, 3, n, 4, 4)) / 2, rng.normal(size=(2, 3, n, 4, 5)), rng.normal(size=(2, 3, 4, 5))
    for product, single in ((mx.matmul, p), (mx.multiply, p[..., :1])):
        want, s = [], state
        for i in range(n):
            s = (single[:, :, i] @ s if product is mx.matmul else single[:, :, i] * s) + q[:, :, i]
            want.append(s)
        args = [mx.array(a.astype(np.float32)) for a in (single, q, state)]
        assert error(affine_scan(*args, product), np.stack(want, axis=2)) < 2e-6


def test_convolution():
    """Against the reference, over splits, and with documents."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(1, 17, 3)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    want = recurrent.convolution(x[0].astype(np.float64), weight)
    taps, bias = mx.array(weight), mx.array([1.0, 2.0, 3.0])
    assert error(causal_conv(mx.array(x), taps)[0][0], want) < 1e-6
    assert error(causal_conv(mx.array(x), taps, bias)[0][0], want + np.array([1, 2, 3])) < 1e-6
    state, got = None, []
    for start, end in ((0, 1), (1, 3), (3, 17)):
        y, state = causal_conv(mx.array(x[:, start:end]), taps, state=state)
        assert state.shape == (1, 3, 3)
        got.append(y)
    assert error(mx.concatenate(got, axis=1)[0], want) < 1e-6
    ids = mx.array([[0, 0, 1, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3]])
    got = causal_conv(mx.array(x), taps, segment_ids=ids)[0]
    for start, end in ((0, 2), (2, 3), (3, 7), (7, 15), (15, 17)):
        want = recurrent.convolution(x[0, start:end].astype(np.float64), weight)
        assert error(got[0, start:end], want) < 1e-6
