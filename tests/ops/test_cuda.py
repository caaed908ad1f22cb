"""Kernels for CUDA beside their twins of MLX's operations; without such a device as the host computes them."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import cuda, fused, rms_norm
from lmxexp.ops.attend import attend, causal_mask, segment_mask
from lmxexp.ops.embed import embed, sum_rows
from lmxexp.ops.gated import _gated
from lmxexp.ops.head_loss import _logit_gradient, _nll, head_loss
from lmxexp.ops.rope import rope
from lmxexp.ops.sum_of_squares import sum_of_squares
from tests.ops.cuda_on_host import HAS_DEVICE, needs_device, needs_kernels

N = 20000 if HAS_DEVICE else 1500
"""Rows: the host takes seconds for thousands of blocks."""
DTYPES = [(mx.float32, 1e-5), (mx.bfloat16, 2**-7)]


def random(*shape, dtype=mx.float32, seed=0):
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(dtype)


@pytest.fixture
def always_by_kernel(monkeypatch):
    """Not by a product, of however few rows."""
    monkeypatch.setattr("lmxexp.ops.embed._ONE_HOT_LIMIT_BESIDE_A_KERNEL", 0)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
# MLX's exp on a CPU is wrong in the sixth digit.
@pytest.mark.parametrize("n_logits", [101, 504, pytest.param(50257, marks=needs_device)])
@pytest.mark.parametrize("members", [None, 3])
def test_head_loss(beside_its_twin, monkeypatch, n_logits, members, dtype, tolerance):
    monkeypatch.setattr("lmxexp.ops.head_loss.LOGITS_AT_ONCE", 66 * 256)
    lead = () if members is None else (members,)
    h, weight = random(*lead, 2, 33, 64, dtype=dtype), random(*lead, n_logits, 64, dtype=dtype, seed=1) * 0.3
    targets = mx.random.randint(0, n_logits, (2, 33), key=mx.random.key(2))
    of_nll = mx.random.uniform(shape=(2, 33), key=mx.random.key(3))

    def loss(h, weight):
        nll, log_z, _ = head_loss(h, weight, targets)
        return (nll * of_nll + 0.1 * log_z.square()).sum()

    def losses(h, weight):
        if members is None:
            return loss(h, weight)
        with fused.mapped():
            return mx.vmap(loss)(h, weight).sum()

    def function():
        value, gradients = mx.compile(mx.value_and_grad(losses, argnums=(0, 1)))(h, weight)
        return [value, *gradients]

    beside_its_twin(function, tolerance)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("width", [8, 64, 768, 2056])
def test_sum_rows(beside_its_twin, always_by_kernel, width, dtype, tolerance):
    rows = random(N, width, dtype=dtype)
    ids = (mx.random.uniform(shape=(N,), key=mx.random.key(1)) ** 8 * 900).astype(mx.int32)  # some far more often
    beside_its_twin(lambda: [sum_rows(rows[None], ids[None], 1000)], tolerance)


@needs_kernels
def test_sums_of_rows_are_the_same_every_time(kernels, always_by_kernel):
    rows, ids = random(N, 64), mx.random.randint(0, 900, (N,), key=mx.random.key(1))
    first = sum_rows(rows[None], ids[None], 1000)
    assert all(mx.array_equal(first, sum_rows(rows[None], ids[None], 1000)) for _ in range(3))


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("members", [None, 3])
def test_embed(beside_its_twin, always_by_kernel, members, dtype, tolerance):
    lead = () if members is None else (members,)
    table, c = random(*lead, 5000, 64, dtype=dtype), random(*lead, 2, N // 8, 64, seed=1)
    ids = mx.random.randint(0, 5000, (*lead, 2, N // 8), key=mx.random.key(2))

    def loss(table):
        if members is None:
            return (embed(table, ids) * c).sum()
        with fused.mapped():
            return (mx.vmap(embed)(table, ids) * c).sum()

    beside_its_twin(lambda: list(mx.value_and_grad(loss)(table)), tolerance)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
# Angles of far positions are rounded in another way on a CPU.
@pytest.mark.parametrize(
    "shape", [(2, 3, 50, 64), (3, 1, 7, 16), pytest.param((1, 12, 1024, 128), marks=needs_device), (2, 6, 33, 20)]
)
@pytest.mark.parametrize("members", [None, 3])
def test_rope(beside_its_twin, shape, members, dtype, tolerance):
    lead = () if members is None else (members,)
    x, c = random(*lead, *shape, dtype=dtype), random(*lead, *shape, seed=1)

    def loss(x):
        if members is None:
            return (rope(x, 10000.0) * c).sum()
        with fused.mapped():
            return (mx.vmap(lambda x: rope(x, 10000.0))(x) * c).sum()

    has_kernel = shape[-1] % (2 * cuda.per_pack(dtype)) == 0
    function = lambda: [mx.grad(loss)(x), *([] if members else [rope(x, 10000.0)])]
    beside_its_twin(function, tolerance, used=has_kernel)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 16), (1, 1), (7, 129), (64, 2048)])
@pytest.mark.parametrize("members", [None, 3])
def test_gradient_of_a_gated_product(beside_its_twin, shape, members, dtype, tolerance):
    lead = () if members is None else (members,)
    gate, up, c = (random(*lead, *shape, dtype=dtype, seed=i) for i in range(3))

    def loss(gate, up):
        if members is None:
            return (_gated("silu")(gate, up) * c).sum()
        with fused.mapped():
            return (mx.vmap(_gated("silu"))(gate, up) * c).sum()

    beside_its_twin(lambda: list(mx.compile(mx.grad(loss, argnums=(0, 1)))(gate, up)), tolerance)


@needs_kernels
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_sum_of_squares(kernels, dtype):
    shapes = ((3,), (100, 7), (768, 768), (2048, 769), (1,)) if HAS_DEVICE else ((3,), (100, 7), (40, 1000), (1,), (5,))
    arrays = [random(*s, dtype=dtype) for s in shapes] * 60
    for some in (arrays, [*arrays[:3], random(5)]):  # more than one call takes, and of two types
        expected = sum(np.square(np.array(a.astype(mx.float32)), dtype=np.float64).sum() for a in some)
        assert sum_of_squares(some).item() == pytest.approx(expected, rel=1e-6)


def test_without_a_kernel_the_sum_of_squares_is_the_same_to_the_bit():
    arrays = [random(3), random(100, 7), random(5, 5, dtype=mx.bfloat16)]
    total = mx.array(0.0)
    for a in arrays:
        total = total + a.astype(mx.float32).square().sum()
    if not cuda.on_cuda():
        assert sum_of_squares(arrays).item() == total.item()


def test_the_switch_and_what_is_under_vmap(monkeypatch):
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    assert cuda.on_cuda()
    assert cuda.usable()
    with fused.mapped():
        assert cuda.on_cuda()
        assert not cuda.usable()
        with cuda.under_vmap(False):
            assert cuda.usable()
    assert cuda.usable()
    monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
    assert not cuda.on_cuda()


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 33, 256), (3, N // 20, 768), (5, 1024), (7, 100), (2, 2048)])
@pytest.mark.parametrize("residual", [False, True])
def test_rms_norm(beside_its_twin, shape, residual):
    has_kernel = shape[-1] % 128 == 0 and shape[-1] <= 1024
    x, weight = random(*shape), random(shape[-1], seed=1)
    c, d = random(*shape, seed=2), random(*shape, seed=3)

    def loss(x, weight):
        if not residual:
            return (rms_norm.rms_norm(x, weight, 1e-5) * c).sum()
        with rms_norm.beside(x) as stream:
            y = rms_norm.rms_norm(x, weight, 1e-5)
        return (y * c).sum() + (stream[0] * d).sum()

    function = lambda: list(mx.compile(mx.grad(loss, argnums=(0, 1)))(x, weight))
    beside_its_twin(function, 1e-5, used=has_kernel)


@needs_kernels
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 1e-5), (mx.bfloat16, 2**-8)])
@pytest.mark.parametrize("residual", [False, True])
def test_gradient_of_rms_norm(kernels, residual, dtype, tolerance):
    """Against float64; MLX's own adds rows up that are rounded to bf16."""
    rows = 5000 if HAS_DEVICE else 1000
    x, weight, c, d = (random(n, 768, dtype=dtype, seed=i) for i, n in enumerate((rows, 1, rows, rows)))
    weight = weight[0]

    def loss(x, weight):
        with rms_norm.beside(x) as stream:
            y = rms_norm.rms_norm(x, weight, 1e-3)
        assert stream[0] is not x, "it is the kernel's"
        return (y * c).sum() + ((stream[0] * d).sum() if residual else 0.0)

    got = mx.grad(loss, argnums=(0, 1))(x, weight)
    a, w, g, s = (np.array(v.astype(mx.float32), np.float64) for v in (x, weight, c, d))
    r = 1 / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-3)
    of_x = g * w * r - a * r**3 * (g * w * a).mean(-1, keepdims=True) + (s if residual else 0.0)
    for ours, want in zip(got, (of_x, (g * a * r).sum(0)), strict=True):
        assert np.abs(np.array(ours.astype(mx.float32)) - want).max() < tolerance * np.abs(want).max()


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 33, 256), (3, N // 20, 768), (7, 100), (1, 2048), (3, 5, 640)])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(mx.float32, 1e-5), (mx.bfloat16, 2**-6)])
def test_norm_of_a_sum(beside_its_twin, shape, goes_on, dtype, tolerance):
    if dtype == mx.bfloat16:
        shape = (*shape[:-1], 2 * shape[-1] if shape[-1] < 2048 else 2048)
    x, y, c, d = (random(*shape, dtype=dtype, seed=i) for i in range(4))
    weight = random(shape[-1], dtype=dtype, seed=4)

    def loss(x, y, weight):
        with rms_norm.sums_with_norms():
            whole = rms_norm.added(x, y)
            with rms_norm.beside(whole) as stream:
                z = rms_norm.rms_norm(whole, weight, 1e-3)
        return (z * c).sum() + ((stream[0] * d).sum() if goes_on else 0.0)

    def values():
        value, gradients = mx.value_and_grad(loss, argnums=(0, 1, 2))(x, y, weight)
        return [value.astype(mx.float32) / x.size, *gradients]

    in_packs = shape[-1] / (32 * cuda.per_pack(dtype))
    beside_its_twin(values, tolerance, used=in_packs.is_integer() and in_packs <= 8)


@needs_kernels
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_a_sum_and_its_norm_are_those_of_mlx(kernels, dtype):
    x, y, weight = random(50, 768, dtype=dtype), random(50, 768, dtype=dtype, seed=1), random(768, dtype=dtype, seed=2)
    with rms_norm.sums_with_norms():
        whole = rms_norm.added(x, y)
        with rms_norm.beside(whole) as stream:
            z = rms_norm.rms_norm(whole, weight, 1e-3)
        other = rms_norm.rms_norm(x, weight, 1e-3)
    assert stream[0] is not whole, "it is the kernel's"
    assert mx.array_equal(stream[0], x + y)
    for ours, mlxs in ((z, mx.fast.rms_norm(x + y, weight, 1e-3)), (other, mx.fast.rms_norm(x, weight, 1e-3))):
        a, b = np.array(ours.astype(mx.float32)), np.array(mlxs.astype(mx.float32))
        np.testing.assert_allclose(a, b, rtol=2**-6 if dtype == mx.bfloat16 else 2e-6)


def test_outside_of_training_sums_are_sums():
    x = random(5, 768)
    whole = rms_norm.added(x, x)
    with rms_norm.beside(whole) as stream:
        rms_norm.rms_norm(whole, mx.ones(768), 1e-3)
    assert mx.array_equal(whole, x + x)
    assert rms_norm._sum is None
    assert stream[0].shape == x.shape


@needs_kernels
@pytest.mark.parametrize("n_logits", [256, 4099])
def test_loss_of_extreme_logits(kernels, n_logits):
    """Against float64, with what stands behind the last logit not looked at."""
    rng = np.random.default_rng(0)
    width = -(-n_logits // 64) * 64
    logits = np.full((10, width), 3e38, np.float32)
    logits[:, :n_logits] = rng.normal(size=(10, n_logits)) * 8
    logits[0, : n_logits - 1] = -np.inf
    logits[1, :n_logits] = -np.inf
    logits[2, : n_logits // 2] = -1e30
    logits[3, 1:n_logits] = -np.inf
    logits[4, :n_logits] += 3e4
    logits[5, :n_logits] -= 3e4
    logits[6, n_logits - 1] = np.nan
    logits[7, :n_logits] = -np.inf
    logits[7, 5] = np.nan
    logits[8, 0] = 1e4
    targets = rng.integers(0, n_logits, 10)
    targets[:4] = n_logits - 1, 0, n_logits - 1, 0
    nll, log_z = _nll(mx.array(logits), mx.array(targets, mx.int32), n_logits)
    wide = logits[:, :n_logits].astype(np.float64)
    largest = wide.max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = largest + np.log(np.exp(wide - np.where(np.isinf(largest), 0, largest)[:, None]).sum(-1))
    np.testing.assert_allclose(np.array(log_z), expected, rtol=2e-7, atol=1e-6)
    of_finite = np.isfinite(expected)
    assert of_finite.sum() == 7
    picked = wide[np.arange(10), targets]
    np.testing.assert_allclose(np.array(nll)[of_finite], expected[of_finite] - picked[of_finite], rtol=1e-6, atol=4e-3)

    of_both, of_nll = rng.normal(size=(2, 10)).astype(np.float32)
    count = 128
    first = width - count  # the part that ends behind the last logit
    got = _logit_gradient(
        *(mx.array(logits), log_z, mx.array(targets, mx.int32), mx.array(of_nll), mx.array(of_both - of_nll)),
        *(first, count, n_logits),
    )
    columns = np.arange(first, min(first + count, n_logits))
    want = np.zeros((10, count))
    with np.errstate(invalid="ignore"):
        p = np.exp(wide[:, columns] - np.array(log_z, np.float64)[:, None]) * of_both[:, None]
    want[:, : len(columns)] = p - of_nll[:, None] * (columns == targets[:, None])
    np.testing.assert_allclose(np.array(got)[of_finite], want[of_finite], rtol=2e-6, atol=1e-7)


@needs_device
@pytest.mark.parametrize("kind", ["documents", "window"])
@pytest.mark.parametrize("length", [256, 300])
def test_masked_attention(kind, length):
    """In bf16, against fp32 scores in memory."""
    q, k, v, c = (random(2, h, length, 64, seed=i) for i, h in enumerate((4, 2, 2, 4)))
    if kind == "documents":
        mask = segment_mask(mx.arange(length)[None] // mx.array([[70], [97]])) & causal_mask(length, length)
    else:
        mask = causal_mask(length, length, window=33)

    def loss(dtype, q, k, v):
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        return (attend(q, k, v, scale=0.125, mask=mask) * c).sum()

    got, want = (mx.grad(lambda *a, t=t: loss(t, *a), argnums=(0, 1, 2))(q, k, v) for t in (mx.bfloat16, mx.float32))
    for ours, other in zip(got, want, strict=True):
        a, b = np.array(ours), np.array(other)
        assert np.linalg.norm(a - b) < 2e-2 * np.linalg.norm(b)


@needs_device
def test_masked_attention_keeps_no_scores():
    B, L = 4, 1024
    q, k, v = (random(B, h, L, 64, dtype=mx.bfloat16, seed=i) for i, h in enumerate((12, 4, 4)))
    mask = causal_mask(L, L, window=100)
    mx.eval(q, k, v, mask)
    gradient = mx.grad(lambda q: attend(q, k, v, scale=0.125, mask=mask).sum())
    mx.eval(gradient(q))
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(gradient(q))
    assert mx.get_peak_memory() - before < B * 12 * L * L * 2
