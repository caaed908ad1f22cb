import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import cuda, gated
from tests.ops import cuda_on_host


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def kernels(monkeypatch, place):
    """The calls of kernels that the host has computed; None: a device does."""
    if cuda_on_host.HAS_DEVICE:
        yield None
        return
    gated._gated.cache_clear()  # what is kept was made with MLX's compiler, and what is made now without
    yield cuda_on_host.install(monkeypatch, place).calls
    gated._gated.cache_clear()


@pytest.fixture
def beside_its_twin(monkeypatch, kernels):
    """Calls a function with the kernels and without them and compares what comes out."""

    def compare(function, tolerance, used=True):
        with_kernels = function()
        mx.eval(with_kernels)
        assert kernels is None or bool(kernels) == used
        monkeypatch.setenv("LMXEXP_CUDA_KERNELS", "0")
        assert not cuda.on_cuda()
        for ours, other in zip(with_kernels, function(), strict=True):
            assert ours.dtype == other.dtype
            assert ours.shape == other.shape
            a, b = (np.array(x.astype(mx.float32)) for x in (ours, other))
            assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1.0)

    return compare
