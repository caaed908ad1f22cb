"""RWKV-7 (attention=rwkv7, attention=rwkv7_channel_mix, model=rwkv7) against position-by-position float64."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.model.attention.rwkv7 import RWKV7
from lmxexp.ops.dplr import dplr
from lmxexp.ops.token_shift import token_shift
from tests.contracts.small_models import LENGTH, relative_error, small_config, small_model, tokens
from tests.reference import rwkv

SHAPES = {
    "two layers of RWKV": ["model.n_layers=4"],
    "wide heads, other ranks": [
        "model.n_layers=6",
        "model.n_heads=2",
        "model.head_dim=24",
        "attention.decay_rank=3",
        "attention.a_rank=4",
        "attention.v_rank=5",
        "attention.gate_rank=7",
    ],
    "chunk that divides": ["model.n_layers=4", "attention.chunk=8"],
}


def float64(module):
    return {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(module.parameters())}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits(shape):
    overrides = ["model=rwkv7", *SHAPES[shape]]
    model, cfg = small_model(*overrides), small_config(*overrides).model
    x = tokens(2)
    want = np.stack([rwkv.logits(row, float64(model), cfg.n_layers, cfg.n_heads) for row in np.array(x)])
    got = np.array(model(x))
    assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


def inputs(length, seed=0, strongest=0.6, channels=8, values=6):
    """As RWKV makes them: keys of length 1, corrected by a share."""
    rng = np.random.default_rng(seed)
    shape = (2, 3, length, channels)
    r, k, a = rng.normal(size=(3, *shape))
    v = rng.normal(size=(2, 3, length, values))
    a /= np.linalg.norm(a, axis=-1, keepdims=True)
    b = -a * rng.uniform(size=shape)
    log_w = -strongest * rng.uniform(size=shape) ** 3
    return r, log_w, k, v, a, b


def in_mlx(arrays):
    return [mx.array(a.astype(np.float32)) for a in arrays]


def naive(arrays, state):
    r, log_w, k, v, a, b = arrays
    ys, states = np.zeros_like(v), np.zeros_like(state)
    for i in np.ndindex(v.shape[:2]):
        ys[i], states[i] = rwkv.dplr(r[i], np.exp(log_w[i]), k[i], v[i], a[i], b[i], state[i])
    return ys, states


@pytest.mark.parametrize("strongest", [0.6, 30.0, 1e4])
@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 32, 64])
def test_chunks_equal_the_recurrence(chunk, strongest):
    """Any chunk, any decay, from any state."""
    arrays = inputs(69, strongest=strongest)
    state = np.random.default_rng(1).normal(size=(2, 3, 8, 6))
    ys, states = naive(arrays, state)
    got_y, got_state = dplr(*in_mlx(arrays), mx.array(state.astype(np.float32)), chunk=chunk)
    assert np.abs(np.array(got_y) - ys).max() / np.abs(ys).max() < 2e-6
    assert np.abs(np.array(got_state) - states).max() / np.abs(states).max() < 2e-6


@pytest.mark.parametrize("split", [(1, 36), (20, 17), (5, 1, 1, 30), (1,) * 37], ids=str)
def test_state_goes_on_over_any_split(split):
    arrays = in_mlx(inputs(37))
    want, want_state = dplr(*arrays, chunk=5)
    state, got, start = None, [], 0
    for n in split:
        y, state = dplr(*(a[:, :, start : start + n] for a in arrays), state, chunk=5)
        got.append(y)
        start += n
    assert relative_error(mx.concatenate(got, axis=2), want) < 1e-6
    assert relative_error(state, want_state) < 1e-6


@pytest.mark.parametrize("strongest", [0.6, 1e4])
def test_gradient_is_that_of_the_recurrence(strongest):
    arrays = in_mlx(inputs(23, strongest=strongest))
    weight = mx.random.normal(arrays[3].shape, key=mx.random.key(0))

    def chunked(*arrays):
        return (dplr(*arrays, chunk=5)[0] * weight).sum()

    def stepwise(*arrays):
        state, total = None, mx.array(0.0)
        for t in range(23):
            y, state = dplr(*(a[:, :, t : t + 1] for a in arrays), state)
            total = total + (y * weight[:, :, t : t + 1]).sum()
        return total

    for got, want in zip(mx.grad(chunked, range(6))(*arrays), mx.grad(stepwise, range(6))(*arrays), strict=True):
        assert relative_error(got, want) < 1e-5


def test_alike_keys_lose_no_digits():
    """One key again and again, replaced each time: the triangular system at its worst."""
    r, log_w, _, v, a, _ = inputs(64)
    a[:] = a[:, :, :1]
    arrays = (r, 0.0 * log_w, -a, v, a, -a)
    ys, _ = naive(arrays, np.zeros((2, 3, 8, 6)))
    got, _ = dplr(*in_mlx(arrays), chunk=64)
    # The rounding of sums of 64 numbers, of which a BLAS may add each to the one before.
    assert np.abs(np.array(got) - ys).max() / np.abs(ys).max() < 64 * 2**-24


def test_documents_are_as_if_alone():
    """Wherever documents begin, each is what it would be in a row of its own; equal ids apart are two documents."""
    model = small_model("model=rwkv7", "model.n_layers=4")
    x = tokens(2)
    ids = mx.array([[0] * 7 + [1] * 1 + [0] * 16, [3] * 15 + [2] * 9])
    h = model.hidden(x, segment_ids=ids)[0]
    for row, ends in enumerate([(0, 7, 8, LENGTH), (0, 15, LENGTH)]):
        for start, end in pairwise(ends):
            alone = model.hidden(x[row : row + 1, start:end])[0]
            assert relative_error(h[row : row + 1, start:end], alone) < 1e-5


def test_token_shift_carries_over():
    x = mx.random.normal((2, 6, 3), key=mx.random.key(0))
    before, last = token_shift(x)
    assert mx.array_equal(before[:, 1:], x[:, :-1]).item()
    assert not before[:, 0].any().item()
    assert mx.array_equal(last, x[:, -1:]).item()
    assert mx.array_equal(token_shift(x[:, 4:], x[:, 3:4])[0], before[:, 4:]).item()


def test_initial_values_are_the_published_ones():
    """As the authors' training code fills them, channel by channel."""
    D, C, n_layers, layer = 32, 8, 6, 2
    mixer = RWKV7(D, n_heads=D // C, n_layers=n_layers, layer_idx=layer)
    p = float64(mixer)
    depth, above = layer / (n_layers - 1), 1 - layer / n_layers
    for n in range(D):
        zigzag = (n % C - (C - 1) / 2) / ((C - 1) / 2)
        zigzag *= abs(zigzag)
        line = n / (D - 1) - 0.5
        for name, power in {"x_r": 0.2, "x_w": 0.9, "x_k": 0.7, "x_v": 0.7, "x_a": 0.9, "x_g": 0.2}.items():
            assert p[name][n] == pytest.approx(1 - (n / D) ** (power * above), abs=1e-6)
        decay = -6 + 6 * (n / (D - 1)) ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag
        assert p["w_lora.bias"][n] == pytest.approx(decay, abs=1e-5)
        assert p["a_lora.bias"][n] == pytest.approx(-0.19 + 0.3 * zigzag + 0.4 * line, abs=1e-6)
        assert p["v_lora.bias"][n] == pytest.approx(0.73 - 0.4 * line, abs=1e-6)
        assert p["k_k"][n] == pytest.approx(0.71 - 0.1 * line, abs=1e-6)
        assert p["g_norm.weight"][n] == pytest.approx(((layer + 1) / n_layers) ** 0.7, abs=1e-6)


@pytest.mark.parametrize(
    ("d_model", "ranks"),
    [
        (768, {"w_lora": 64, "a_lora": 64, "v_lora": 32, "g_lora": 128}),
        (2048, {"w_lora": 96, "a_lora": 96, "v_lora": 64, "g_lora": 256}),
    ],
)
def test_ranks_are_the_published_ones(d_model, ranks):
    """Of the models of 0.1B and 1.5B."""
    mixer = RWKV7(d_model, n_heads=d_model // 64, n_layers=3, layer_idx=2)
    for name, rank in ranks.items():
        assert mixer[name].down.weight.shape == (rank, d_model)
