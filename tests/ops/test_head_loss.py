"""The head and its cross-entropy in one function, against the two apart in float64."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp import device
from lmxexp.ops import fused, head_loss
from lmxexp.ops.head_loss import head_loss as of_head


def reference(h, weight, targets, of_nll, of_square):
    """Loss and gradients of ``sum(nll * of_nll + log_z**2 * of_square)`` in float64."""
    h, weight = np.asarray(h, np.float64), np.asarray(weight, np.float64)
    logits = h @ weight.T
    largest = logits.max(-1, keepdims=True)
    log_z = (np.log(np.exp(logits - largest).sum(-1, keepdims=True)) + largest)[..., 0]
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    p = np.exp(logits - log_z[..., None])
    one_hot = np.zeros_like(p)
    np.put_along_axis(one_hot, targets[..., None], 1.0, -1)
    gradient = p * (of_nll + 2 * log_z * of_square)[..., None] - one_hot * of_nll[..., None]
    loss = ((log_z - picked) * of_nll + log_z**2 * of_square).sum()
    return loss, gradient @ weight, gradient.reshape(-1, gradient.shape[-1]).T @ h.reshape(-1, h.shape[-1])


def problem(n_logits, members=()):
    rng = np.random.default_rng(n_logits)
    h = rng.normal(size=(*members, 2, 9, 16)).astype(np.float32)
    weight = rng.normal(size=(*members, n_logits, 16)).astype(np.float32)
    targets = rng.integers(0, n_logits, (2, 9)).astype(np.int32)
    return h, weight, targets, rng.uniform(size=(2, 9)).astype(np.float32), rng.uniform(size=(2, 9)).astype(np.float32)


def loss_of(targets, of_nll, of_square):
    def loss(h, weight):
        nll, log_z, _ = of_head(h, weight, mx.array(targets))
        return (nll * mx.array(of_nll) + log_z.square() * mx.array(of_square)).sum()

    return loss


def assert_close(ours, expected, tolerance=2e-6):
    for a, b in zip(ours, expected, strict=True):
        assert np.abs(np.array(a) - b).max() <= tolerance * max(np.abs(b).max(), 1.0)


@pytest.fixture(params=[1 << 28, 18 * 64])
def in_parts(request, monkeypatch):
    """All columns of the gradient at once, and 64 of them at a time."""
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", request.param)


@pytest.fixture(params=[False, True])
def of_mlx(request, monkeypatch):
    """The loss is made of MLX's operations, or it is MLX's own, which on Metal is one kernel."""
    monkeypatch.setattr(device, "backend", lambda: "metal" if request.param else "cpu")


@pytest.mark.usefixtures("in_parts", "of_mlx")
@pytest.mark.parametrize("n_logits", [17, 64, 257, 264])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients(n_logits, compiled):
    h, weight, *rest = problem(n_logits)
    function = mx.value_and_grad(loss_of(*rest), argnums=(0, 1))
    loss, gradients = (mx.compile(function) if compiled else function)(mx.array(h), mx.array(weight))
    assert_close((loss, *gradients), reference(h, weight, *rest))


@pytest.mark.usefixtures("in_parts", "of_mlx")
def test_of_several_members_with_weights_of_their_own():
    h, weight, *rest = problem(65, members=(3,))

    def losses(h, weight):
        with fused.mapped():
            return mx.vmap(loss_of(*rest))(h, weight).sum()

    gradients = mx.grad(losses, argnums=(0, 1))(mx.array(h), mx.array(weight))
    for i in range(3):
        assert_close([g[i] for g in gradients], reference(h[i], weight[i], *rest)[1:])


def test_logits_are_those_of_the_head_and_no_more():
    h, weight, targets, *_ = problem(17)
    _, _, logits = of_head(mx.array(h), mx.array(weight), mx.array(targets))
    assert logits.shape == (2, 9, 17)
    assert_close([logits], [h.astype(np.float64) @ weight.T.astype(np.float64)])


def test_in_bf16_the_loss_is_that_of_the_rounded_logits():
    h, weight, targets, *_ = problem(257)
    h, weight = mx.array(h).astype(mx.bfloat16), mx.array(weight).astype(mx.bfloat16)
    nll, log_z, logits = of_head(h, weight, mx.array(targets))
    assert nll.dtype == log_z.dtype == mx.float32
    rounded = np.array(logits.astype(mx.float32)).astype(np.float64)
    assert_close([log_z], [np.log(np.exp(rounded).sum(-1))], tolerance=1e-6)


@pytest.mark.usefixtures("of_mlx")
def test_what_is_no_number_comes_through():
    h, weight, targets, *_ = problem(257)
    h[0, 0, 0] = np.nan
    nll, _, _ = of_head(mx.array(h), mx.array(weight), mx.array(targets))
    assert np.isnan(np.array(nll)[0, 0])
    assert np.isfinite(np.array(nll)[0, 1:]).all()


@pytest.mark.skipif(device.backend() != "metal", reason="needs Metal")
def test_metal_has_no_logits_in_fp32():
    """Twice the logits in bf16, at the moment when everything that is kept for the gradient is there."""
    h, weight, targets = (
        mx.zeros((2048, 64), mx.bfloat16),
        mx.zeros((8192, 64), mx.bfloat16),
        mx.zeros((2048,), mx.int32),
    )
    mx.eval(h, weight, targets)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(of_head(h, weight, targets)[:2])
    assert mx.get_peak_memory() - before < 2 * 2 * 2048 * 8192
