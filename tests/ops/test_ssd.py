"""Chunked state spaces against the recurrences that they compute."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import ssd as ssd_module
from lmxexp.ops.selective_scan import selective_scan, selective_scan_flops
from lmxexp.ops.ssd import ssd, ssd_flops
from tests.reference import state_space as reference

# Rates of decay: hardly any, the usual, and down to nothing left of the state, all in one sequence.
RATES = {"weak": 1e-3, "usual": 0.5, "strong": 60.0}


def inputs(L, rates, seed=0, B=2, H=4, P=3, G=2, N=5):
    rng = np.random.default_rng(seed)
    log_decay = -rates * rng.exponential(size=(B, L, H))
    if rates > 1:
        log_decay = np.where(rng.random((B, L, H)) < 0.3, log_decay, 0.01 * log_decay)
    x, b, c = rng.normal(size=(B, L, H, P)), rng.normal(size=(B, L, G, N)), rng.normal(size=(B, L, G, N))
    return [x, log_decay, b, c], rng.normal(size=(B, H, P, N))


def scan_inputs(L, rates, seed=0, B=2, D=6, N=3):
    rng = np.random.default_rng(seed)
    dt = rates * rng.exponential(size=(B, L, D))
    a = -np.exp(rng.normal(size=(D, N)))
    x, b, c = rng.normal(size=(B, L, D)), rng.normal(size=(B, L, N)), rng.normal(size=(B, L, N))
    return [x, dt, a, b, c], rng.normal(size=(B, D, N))


def by_row(f, arrays, state, shared=()):
    """The naive form of each row."""
    rows = [f(*(a if i in shared else a[row] for i, a in enumerate(arrays)), state[row]) for row in range(len(state))]
    return [np.stack(parts) for parts in zip(*rows, strict=True)]


def close(got, want, tolerance=1e-5):
    got, want = np.array(got, dtype=np.float64), np.asarray(want)
    assert got.shape == want.shape
    return np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (23, 1), (23, 5), (24, 8), (40, 64)])
def test_ssd_is_the_recurrence(length, chunk, rates):
    arrays, state = inputs(length, RATES[rates])
    want, want_state = by_row(reference.ssd, arrays, state)
    got, got_state = ssd(*map(mx.array, arrays), mx.array(state), chunk)
    assert close(got, want)
    assert close(got_state, want_state)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("group", [2, 3])
def test_ssd_passes_states_over_groups_of_groups(group, rates, monkeypatch):
    """Long sequences in small: 12 chunks in groups of 2 are three levels."""
    monkeypatch.setattr(ssd_module, "_GROUP", group)
    arrays, state = inputs(24, RATES[rates])
    want, want_state = by_row(reference.ssd, arrays, state)
    got, got_state = ssd(*map(mx.array, arrays), mx.array(state), 2)
    assert close(got, want)
    assert close(got_state, want_state)
    from_nothing = ssd(*map(mx.array, arrays), chunk=2)[0]
    assert close(from_nothing, by_row(reference.ssd, arrays, np.zeros_like(state))[0])


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize(("length", "chunk"), [(1, 4), (23, 1), (23, 5), (24, 8), (40, 64)])
def test_selective_scan_is_the_recurrence(length, chunk, rates):
    arrays, state = scan_inputs(length, RATES[rates])
    want, want_state = by_row(reference.selective_scan, arrays, state, shared=[2])
    got, got_state = selective_scan(*map(mx.array, arrays), mx.array(state), chunk=chunk)
    assert close(got, want)
    assert close(got_state, want_state)


@pytest.mark.parametrize("split", [(1, 22), (9, 1, 13), (1,) * 23], ids=str)
def test_the_state_is_carried_across_any_split(split):
    ssd_arrays, ssd_state = inputs(23, 0.5)
    scan_arrays, scan_state = scan_inputs(23, 0.5)
    want = by_row(reference.ssd, ssd_arrays, ssd_state)
    want_scan = by_row(reference.selective_scan, scan_arrays, scan_state, shared=[2])
    x, g, b, c = map(mx.array, ssd_arrays)
    u, dt, a, bu, cu = map(mx.array, scan_arrays)
    state, s, start, ys, zs = mx.array(ssd_state), mx.array(scan_state), 0, [], []
    for n in split:
        here = slice(start, start + n)
        y, state = ssd(x[:, here], g[:, here], b[:, here], c[:, here], state, 5)
        z, s = selective_scan(u[:, here], dt[:, here], a, bu[:, here], cu[:, here], s, chunk=5)
        ys.append(y)
        zs.append(z)
        start += n
    assert close(mx.concatenate(ys, axis=1), want[0])
    assert close(state, want[1])
    assert close(mx.concatenate(zs, axis=1), want_scan[0])
    assert close(s, want_scan[1])


def naive_ssd(x, log_decay, b, c, state):
    """Token by token in MLX, to be differentiated."""
    R = x.shape[2] // b.shape[2]
    b, c, ys = mx.repeat(b, R, axis=2), mx.repeat(c, R, axis=2), []
    for t in range(x.shape[1]):
        state = mx.exp(log_decay[:, t])[..., None, None] * state + x[:, t, :, :, None] * b[:, t, :, None]
        ys.append((state * c[:, t, :, None]).sum(axis=-1))
    return mx.stack(ys, axis=1), state


def naive_scan(x, dt, a, b, c, state):
    ys = []
    for t in range(x.shape[1]):
        state = mx.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
        ys.append((state * c[:, t, None]).sum(axis=-1))
    return mx.stack(ys, axis=1), state


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("kind", ["ssd", "ssd in groups", "selective_scan"])
def test_gradients_are_those_of_the_recurrence(kind, rates, monkeypatch):
    if kind == "ssd in groups":
        monkeypatch.setattr(ssd_module, "_GROUP", 2)
    if kind == "selective_scan":
        arrays, state = scan_inputs(23, RATES[rates])
        f, naive = lambda *a: selective_scan(*a, chunk=5), naive_scan
    else:
        arrays, state = inputs(23, RATES[rates])
        f, naive = lambda *a: ssd(*a, chunk=5), naive_ssd
    arguments = [mx.array(a.astype(np.float32)) for a in [*arrays, state]]
    rng = np.random.default_rng(1)
    ones = [mx.array(rng.normal(size=y.shape).astype(np.float32)) for y in naive(*arguments)]

    def weighted(f):
        return lambda *a: sum((y * w).sum() for y, w in zip(f(*a), ones, strict=True))

    everything = list(range(len(arguments)))
    got = mx.grad(weighted(f), argnums=everything)(*arguments)
    want = mx.grad(weighted(naive), argnums=everything)(*arguments)
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert mx.isfinite(a).all().item(), i
        assert close(a, np.array(b), 2e-5), i


def test_nothing_is_left_after_a_reset():
    """A decay of exp(-1e4) forgets exactly, and its gradient is a number."""
    arrays, state = inputs(12, 0.5)
    x, g, b, c = map(mx.array, arrays)
    g = mx.where((mx.arange(12) == 7)[None, :, None], -1e4, g)
    f = lambda x, g, state: ssd(x, g, b, c, state, 5)[0]
    y = f(x, g, mx.array(state))
    assert mx.array_equal(
        y[:, 7:], f(mx.where((mx.arange(12) < 7)[None, :, None, None], 9.0, x), g, None)[:, 7:]
    ).item()
    for gradient in mx.grad(lambda *a: f(*a).square().sum(), argnums=[0, 1, 2])(x, g, mx.array(state)):
        assert mx.isfinite(gradient).all().item()


def test_bfloat16_stays_and_is_close():
    arrays, state = inputs(40, 0.5)
    x, g, b, c = map(mx.array, arrays)
    half = [a.astype(mx.bfloat16) for a in (x, b, c)]
    y, new_state = ssd(half[0], g, half[1], half[2], None, 8)
    assert (y.dtype, new_state.dtype) == (mx.bfloat16, mx.float32)
    assert close(y.astype(mx.float32), by_row(reference.ssd, arrays, np.zeros_like(state))[0], 0.03)


def test_selective_scan_under_vmap():
    """Several models at once: each as if it were alone, gradients too."""
    one, state = scan_inputs(11, 0.5)
    other, _ = scan_inputs(11, 0.5, seed=1)
    pairs = [mx.stack([mx.array(a), mx.array(b)]) for a, b in zip(one, other, strict=True)]
    f = lambda x, dt, a, b, c: selective_scan(x, dt, a, b, c, mx.array(state), chunk=4)[0]
    both = mx.vmap(f, in_axes=(0, 0, 0, None, 0))
    arguments = [pairs[0], pairs[1], pairs[2], pairs[3][0], pairs[4]]
    loss = lambda f: lambda *a: f(*a).square().sum()
    got = mx.grad(loss(both), argnums=[0, 2, 3])(*arguments)
    alone = [
        mx.grad(loss(f), argnums=[0, 2, 3])(*(a if i == 3 else a[n] for i, a in enumerate(arguments))) for n in (0, 1)
    ]
    for n in (0, 1):
        assert close(both(*arguments)[n], np.array(f(*(a if i == 3 else a[n] for i, a in enumerate(arguments)))))
        assert close(got[0][n], np.array(alone[n][0]))
        assert close(got[1][n], np.array(alone[n][1]))
    assert close(got[2], np.array(alone[0][2] + alone[1][2]))


def test_memory_of_the_selective_scan_is_that_of_a_chunk():
    """In training, four times the length takes nowhere near four times the memory."""

    def peak(L):
        arrays, _ = scan_inputs(L, 0.1, B=1, D=64, N=16)
        x, dt, a, b, c = map(mx.array, arrays)
        gradient = mx.compile(mx.grad(lambda x, a: selective_scan(x, dt, a, b, c, chunk=64)[0].sum(), argnums=[0, 1]))
        mx.eval(gradient(x, a))
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(gradient(x, a))
        return mx.get_peak_memory() - before

    assert peak(2048) < 2 * peak(512)


def test_flops_are_counted_product_by_product():
    # One head, one chunk of 4 positions, P 3, N 5: c b^T, weights @ x, x^T b, what c reads; (2 x 1) passed on.
    assert ssd_flops(4, 1, 3, 5, 1, 4) == 2 * (4 * 4 * 5 + 4 * 4 * 3 + 4 * 3 * 5 + 4 * 3 * 5 + 2 * 1 * 15)
    # A chunk that is not full costs as much as a full one.
    assert ssd_flops(7, 2, 3, 5, 1, 4) == ssd_flops(8, 2, 3, 5, 1, 4)
    # Linear in the length: 4096 positions in 64 chunks are one group, 65536 are 16, put together by one more product.
    per_position = [ssd_flops(L, 8, 64, 128, 1, 64) / L for L in (4096, 65536, 1048576)]
    assert max(per_position) < 1.05 * min(per_position)
    # Two positions of one state: two decays, two inputs, one pair of decays, two steps, two products with c.
    assert selective_scan_flops(8, 1, 1, 8) == 4 * 8 + 4 + 2 * (8 + 4)
    assert selective_scan_flops(16, 6, 3, 8) == 2 * selective_scan_flops(8, 6, 3, 8)
