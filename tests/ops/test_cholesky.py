"""Inverses of Cholesky factors and of triangular matrices, against float64; and CUDA's kernel beside its twin."""

import math

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import cholesky, cuda
from lmxexp.ops.cholesky import inverse_cholesky, inverse_cholesky_flops, upper_inverse, upper_inverse_flops
from lmxexp.ops.matrix_roots import orthonormal_columns
from lmxexp.ops.unit_lower import unit_lower_flops
from tests.ops.cuda_on_host import needs_device, needs_kernels
from tests.ops.test_matrix_roots import SIZES, assert_mapped_as_alone, positive, to_mlx


def of_float64(matrix):
    return np.linalg.inv(np.linalg.cholesky(matrix))


@pytest.mark.parametrize("n", SIZES)
def test_upper_inverse(n):
    rng = np.random.default_rng(3)
    matrix = np.triu(rng.normal(size=(2, n, n)) / n**0.5) + np.eye(n) * rng.uniform(1, 10, (2, n, 1))
    found = np.array(upper_inverse(to_mlx(matrix)))
    np.testing.assert_allclose(found, np.linalg.inv(matrix.astype(np.float32).astype(np.float64)), atol=1e-5)
    np.testing.assert_array_equal(found, np.triu(found))


@pytest.mark.parametrize("n", [*SIZES, 301])
def test_inverse_cholesky(n):
    matrix = positive(n, 100.0)
    found = np.array(inverse_cholesky(to_mlx(matrix)))
    np.testing.assert_allclose(found, of_float64(matrix), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found, np.tril(found))


@pytest.mark.parametrize("n", [1, 17, 64, 65, 200, 256])
@pytest.mark.parametrize(("condition", "tolerance"), [(1.5, 1e-6), (100.0, 1e-5), (1e4, 1e-3)])
def test_column_by_column_of_blocks(n, condition, tolerance):
    """What CUDA does, with LAPACK in the place of the kernel."""
    matrix = positive(n, condition)
    found = np.array(cholesky._by_columns(to_mlx(matrix), cholesky._by_lapack))
    expected = of_float64(matrix)
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    np.testing.assert_array_equal(found, np.tril(found))


@pytest.mark.parametrize("function", [lambda a: upper_inverse(mx.triu(a)), inverse_cholesky])
def test_mapped_and_compiled_is_what_it_is_alone(function):
    assert_mapped_as_alone(function)


@pytest.mark.parametrize("compiled", [False, True])
def test_all_members_are_one_call_of_the_kernel(monkeypatch, compiled):
    calls = []

    def in_its_place(matrix, *, numbers, blocks, typed, shapes, dtypes):
        calls.append((matrix.shape, *numbers, blocks))
        assert (typed, shapes, dtypes) == (mx.float32, [matrix.shape], [mx.float32])
        return [cholesky._by_lapack(matrix)]

    monkeypatch.setattr(cuda, "on_cuda", lambda: True)
    monkeypatch.setattr(cholesky, "_INVERSE_FACTOR", in_its_place)
    matrices = np.stack([positive(65, 10.0, seed=i) for i in range(3)])
    for a in (to_mlx(matrices), mx.moveaxis(to_mlx(matrices), 0, 1)):
        mapped = mx.vmap(inverse_cholesky, in_axes=0 if a.shape[0] == 3 else 1)
        with cuda.under_vmap(True):
            found = (mx.compile(mapped) if compiled else mapped)(a)
        np.testing.assert_allclose(np.array(found), of_float64(matrices), atol=1e-5)
        assert calls == [((3, 2, 64, 64), 64, 6), ((3, 2, 1, 1), 1, 6)]
        calls.clear()
    np.testing.assert_allclose(
        np.array(inverse_cholesky(to_mlx(matrices[0, 0]))), of_float64(matrices[0, 0]), atol=1e-5
    )
    assert calls == [((64, 64), 64, 1), ((1, 1), 1, 1)]


def test_flops():
    assert upper_inverse_flops(100) == unit_lower_flops(128)
    assert inverse_cholesky_flops(256) == 8 * 128**3 + 2 * unit_lower_flops(128)


@needs_kernels
@pytest.mark.parametrize("n", [1, 3, 17, 63, 64, 200, pytest.param(768, marks=needs_device)])
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
def test_the_kernel(beside_its_twin, n, batch):
    count = math.prod(batch)
    matrices = np.concatenate([positive(n, 100.0, seed=i) for i in range(-(-count // 2))])[:count].reshape(*batch, n, n)
    a = to_mlx(matrices)
    found = np.array(inverse_cholesky(a))
    np.testing.assert_allclose(found, of_float64(matrices), rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found, np.tril(found))
    beside_its_twin(lambda: [inverse_cholesky(a), mx.compile(inverse_cholesky)(a)], 1e-5)


@needs_kernels
@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0])
@pytest.mark.parametrize("n", [17, 64])
def test_the_kernel_has_no_factor_of_what_is_not_positive(kernels, bad, n):
    matrices = positive(n, 10.0)
    expected = of_float64(matrices)
    matrices[0, 9, 9] = bad
    found = np.array(inverse_cholesky(to_mlx(matrices)))
    np.testing.assert_allclose(found[0, :9], expected[0, :9], atol=1e-5)
    assert np.isnan(found[0][np.tril_indices(n)][45:]).all()
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("n", [17, 64, 200])
def test_the_kernel_takes_all_members(beside_its_twin, n):
    matrices = np.stack([positive(n, 100.0, seed=i) for i in range(3)])

    def function():
        with cuda.under_vmap(True):
            return list(mx.compile(mx.vmap(inverse_cholesky))(to_mlx(matrices)))

    np.testing.assert_allclose(np.stack([np.array(a) for a in function()]), of_float64(matrices), rtol=0, atol=1e-4)
    beside_its_twin(function, 1e-5)


@needs_kernels
@pytest.mark.parametrize("n", [200, pytest.param(768, marks=needs_device)])
@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_orthonormal_columns_by_the_kernel(beside_its_twin, n, condition):
    a = to_mlx(positive(n, condition))
    q, error = (np.array(x) for x in mx.compile(orthonormal_columns)(a))
    assert error.max() < 1e-5
    np.testing.assert_allclose(q.swapaxes(-1, -2) @ q, np.broadcast_to(np.eye(n), q.shape), atol=1e-5)
    if condition == 10.0:  # else the last columns are those of rounding
        beside_its_twin(lambda: list(mx.compile(orthonormal_columns)(a)), 1e-5)
