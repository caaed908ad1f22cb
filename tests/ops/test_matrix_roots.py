"""Roots and bases made of products, against float64 decompositions; and taking turns."""

import math

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.ops import cuda
from lmxexp.ops.matrix_roots import (
    in_turn,
    inverse_root,
    inverse_root_flops,
    norm_lower_bound,
    orthonormal_columns,
    orthonormal_flops,
)
from lmxexp.ops.unit_lower import unit_lower_flops
from tests.population.close import on_a_gpu

SIZES = [1, 2, 6, 33, 150]  # the last is more than one block


def to_mlx(a):
    return mx.array(a.astype(np.float32))


def positive(n, condition, seed=0):
    """A stack of two symmetric matrices with eigenvalues from 1 down to ``1 / condition``, as fp32 holds them."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(2, n, n)))[0]
    matrix = (q * np.geomspace(1, 1 / condition, n)) @ q.swapaxes(-1, -2)
    return ((matrix + matrix.swapaxes(-1, -2)) / 2).astype(np.float32).astype(np.float64)


def root_of(matrix, root, damping):
    size = np.linalg.norm(matrix, axis=(-2, -1), keepdims=True)
    values, vectors = np.linalg.eigh(matrix + damping * size * np.eye(matrix.shape[-1]))
    return (vectors * values[..., None, :] ** (-1 / root)) @ vectors.swapaxes(-1, -2)


@pytest.mark.parametrize("root", [2, 4])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(
    ("condition", "damping", "tolerance"), [(1e2, 1e-6, 1e-5), (1e8, 1e-4, 1e-3), (1e8, 1e-2, 1e-5)]
)
def test_inverse_root(root, n, condition, damping, tolerance):
    """fp32 rounds the smallest of a sum of eigenvalues to ``n * 6e-8 / damping`` of itself."""
    matrix = positive(n, condition)
    found, error = inverse_root(to_mlx(matrix), root, damping)
    assert (found.shape, error.shape) == (matrix.shape, (2, 1, 1))
    assert error.max().item() < 1e-5
    expected = root_of(matrix, root, damping)
    assert np.linalg.norm(np.array(found) - expected) < tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e20])
def test_inverse_root_has_no_range(size):
    matrix = positive(8, 10.0) * size
    found, error = inverse_root(to_mlx(matrix), 4, 1e-6)
    assert error.max().item() < 1e-5
    np.testing.assert_allclose(np.array(found), root_of(matrix, 4, 1e-6), rtol=0, atol=1e-4 * size**-0.25)


def test_inverse_root_of_zeros_and_of_low_rank():
    found, error = inverse_root(mx.zeros((3, 3)), 4, 1e-4)
    np.testing.assert_allclose(np.array(found), 10 * np.eye(3), rtol=1e-5, atol=1e-6)
    assert error.item() < 1e-5
    row = np.random.default_rng(0).normal(size=(64, 1))
    found, error = inverse_root(to_mlx(row @ row.T), 4, 1e-6)
    assert error.item() < 1e-4
    assert np.linalg.eigvalsh(np.array(found, np.float64)).min() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_inverse_root_says_when_there_is_none(bad):
    matrix = np.eye(4)
    matrix[2, 2] = bad
    _, error = inverse_root(to_mlx(matrix), 4, 1e-6)
    assert not error.item() < 0.1


def householder(matrix):
    q, r = np.linalg.qr(matrix)
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def same_q(found, expected, tolerance):
    signs = np.sign((found * expected).sum(-2, keepdims=True))
    np.testing.assert_allclose(found * signs, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("lengths", ["equal", "wild"])
def test_orthonormal_columns(n, lengths):
    matrix = np.random.default_rng(1).normal(size=(2, n, n)) + 2 * n**0.5 * np.eye(n)
    if lengths == "wild":
        matrix = matrix * np.random.default_rng(2).choice([1e-15, 1.0, 1e15], (2, 1, n))
    found, error = orthonormal_columns(to_mlx(matrix))
    assert error.max().item() < 5e-6
    same_q(np.array(found, np.float64), householder(matrix.astype(np.float32).astype(np.float64)), 1e-5)


@pytest.mark.parametrize("condition", [1e4, 1e7, 1e9])
def test_orthonormal_columns_of_almost_no_rank(condition):
    """Whatever the condition they are orthonormal; the first of them are right."""
    matrix = positive(100, condition)
    found, error = orthonormal_columns(to_mlx(matrix))
    q = np.array(found, np.float64)
    assert error.max().item() < 5e-6
    np.testing.assert_allclose(q.swapaxes(-1, -2) @ q, np.broadcast_to(np.eye(100), q.shape), atol=5e-6)
    same_q(q[..., :10], householder(matrix)[..., :10], 1e-4)


@pytest.mark.parametrize(
    "matrix", [np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan), np.diag([1, np.inf, 1])]
)
def test_orthonormal_columns_says_when_there_are_none(matrix):
    _, error = orthonormal_columns(to_mlx(matrix))
    assert not error.item() < 1e-3


@pytest.mark.parametrize("n", SIZES)
def test_norm_lower_bound(n):
    matrix = np.concatenate([positive(n, 1e3), positive(n, 1.5, seed=4) * 1e-25])
    largest = np.linalg.eigvalsh(matrix)[:, -1]
    found = np.array(norm_lower_bound(to_mlx(matrix)))[:, 0, 0]
    assert np.all(found <= largest * (1 + 1e-5))
    assert np.all(found > 0.6 * largest)
    assert norm_lower_bound(mx.zeros((3, 3))).item() == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda a: inverse_root(a, 4, 1e-6)[0],
        lambda a: orthonormal_columns(a)[0],
        norm_lower_bound,
    ],
    ids=["inverse_root", "orthonormal_columns", "norm_lower_bound"],
)
def test_mapped_and_compiled_is_what_it_is_alone(function):
    assert_mapped_as_alone(function)


def assert_mapped_as_alone(function):
    """Of a matrix, for one member after the other and for all at once."""
    matrices = to_mlx(positive(24, 100.0))
    alone = [function(matrix) for matrix in matrices]
    for mapped in (mx.vmap(function), mx.compile(mx.vmap(function))):
        with cuda.under_vmap(True):
            together = mapped(matrices)
        for one, of_all in zip(alone, together, strict=True):
            np.testing.assert_allclose(np.array(of_all), np.array(one), atol=1e-4 if on_a_gpu() else 0)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("every", [1, 2, 3, 10])
def test_in_turn_each_has_its_turn_once_and_the_work_is_even(count, every):
    calls = []

    def compute(x, y):
        calls.append(x.shape[0])
        return (x * 10 + y,)

    items = [(mx.array([float(i)]), mx.array([1.0])) for i in range(count)]
    old = [(mx.array([-1.0]),) for _ in items]
    turns = []
    for step in range(every, 2 * every):
        new = in_turn(compute, items, old, mx.array(step, mx.uint64), every)
        values = [a.item() for (a,) in new]
        assert all(value in (-1, 10 * i + 1) for i, value in enumerate(values))
        turns += [i for i, value in enumerate(values) if value != -1]
    assert sorted(turns) == list(range(count))
    assert set(calls) == {math.ceil(count / every)}


def test_flops():
    assert inverse_root_flops(10, 4, 1e-6) == 21 * 4 * 2000
    assert inverse_root_flops(10, 2, 1e-6) == 23 * 3 * 2000
    assert orthonormal_flops(64) == 5 * (4 * 64**3 + unit_lower_flops(64)) + 2 * 64**3
