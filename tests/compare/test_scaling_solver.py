"""The many small fits against finite differences and SciPy."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from lmxexp.compare.scaling_solver import DELTA, minimise, objective

rng = np.random.default_rng(0)


def problem(k, n=20, noise=0.01):
    x = rng.normal(0, 1, (k, n))
    theta = np.concatenate([[0.4], rng.normal(-0.5, 0.3, k), rng.uniform(0.2, 0.6, k)])
    loss = np.exp(theta[0]) + sum(np.exp(theta[1 + i] - theta[1 + k + i] * x[i]) for i in range(k))
    return x, np.log(loss) + rng.normal(0, noise, n), theta


def huber(theta, x, y, weights=None):
    """Written as in the paper, one problem at a time: ``Huber(LSE(...) - log L)``, in units of delta."""
    k = len(x)
    parts = [theta[0] + 0 * y, *(theta[1 + i] - theta[1 + k + i] * x[i] for i in range(k))]
    r = np.abs(np.logaddexp.reduce(parts, axis=0) - y)
    each = np.where(r <= DELTA, 0.5 * r**2, DELTA * (r - 0.5 * DELTA)) / DELTA
    return float(np.sum(each if weights is None else weights * each))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("noise", [0.0003, 0.05])
def test_the_objective_is_the_papers_and_its_gradient_is_exact(k, noise):
    x, y, theta = problem(k, noise=noise)
    thetas = theta + rng.normal(0, 0.05, (5, len(theta)))
    weights = rng.integers(0, 4, (5, len(y))).astype(float)
    value, gradient = objective(thetas, weights, x, y)
    for i in range(5):
        assert value[i] == pytest.approx(huber(thetas[i], x, y, weights[i]), rel=1e-10)
        numeric = approx_fprime(thetas[i], lambda t, i=i: huber(t, x, y, weights[i]), 1e-8)
        np.testing.assert_allclose(gradient[i], numeric, rtol=1e-3, atol=1e-3 * np.abs(numeric).max())


@pytest.mark.parametrize("k", [1, 2])
def test_minima_are_scipys(k):
    x, y, theta = problem(k, n=40)
    bounds = np.array([[-10.0, y.min()], *[[-10.0, 5.0]] * k, *[[0.0, 3.0]] * k])
    weights = np.stack([np.ones(len(y)), *rng.multinomial(len(y), np.full(len(y), 1 / len(y)), 5)]).astype(float)
    starts = np.tile(theta, (6, 1)) + rng.normal(0, 0.1, (6, len(theta)))
    _, value = minimise(starts, weights, x, y, bounds)
    for i in range(6):
        best = min(
            minimize(huber, start, (x, y, weights[i]), method="L-BFGS-B", bounds=bounds, options={"maxiter": 2000}).fun
            for start in (theta, starts[i], np.clip(theta * 0.9, *bounds.T))
        )
        assert value[i] == pytest.approx(best, rel=0.01)
        assert value[i] <= best * 1.01


def test_bounds_hold():
    """Losses that grow with size: the exponent wants to be negative, and ends on 0."""
    x = np.linspace(-1, 1, 12)[None]
    y = 1 + 0.1 * x[0]
    bounds = np.array([[-10.0, y.min()], [-10.0, 5.0], [0.0, 3.0]])
    theta, value = minimise(np.array([[0.5, -0.5, 0.4], [-1.0, 0.9, 0.1]]), np.ones((2, 12)), x, y, bounds)
    assert ((theta >= bounds[:, 0]) & (theta <= bounds[:, 1])).all()
    np.testing.assert_allclose(theta[:, 2], 0, atol=1e-6)
    best = min(minimize(huber, t, (x, y), method="L-BFGS-B", bounds=bounds).fun for t in ([0.5, -0.5, 0.4], [0, 0, 0]))
    assert (value <= best * 1.0001).all()


def test_an_exact_law_is_found_exactly():
    x, _, theta = problem(2, n=30, noise=0)
    y = np.log(np.exp(theta[0]) + sum(np.exp(theta[1 + i] - theta[3 + i] * x[i]) for i in range(2)))
    bounds = np.array([[-10.0, y.min()], *[[-10.0, 5.0]] * 2, *[[0.0, 3.0]] * 2])
    found, value = minimise(theta[None] + 0.2, np.ones((1, 30)), x, y, bounds)
    assert value[0] < 1e-8
    np.testing.assert_allclose(found[0], theta, atol=1e-3)


@pytest.mark.parametrize("seed", [2, 4])
def test_on_a_bound_the_others_are_still_found(seed):
    """Size helps and tokens do not, as far as these can be told apart: one exponent is 0, the rest are at a minimum."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 1, (2, 20))
    x[1] = 0.8 * x[0] + 0.3 * x[1]
    y = 1 + 0.05 * x[0] - 0.1 * x[1] + generator.normal(0, 0.01, 20)
    bounds = np.array([[-10.0, y.min()], *[[-10.0, 5.0]] * 2, *[[0.0, 3.0]] * 2])
    starts = np.array([[0.5, -0.5, -0.5, 0.4, 0.4], [-1, 0.5, 0.5, 0.1, 0.1], [0.8, -2, -2, 1, 1]])
    theta, value = minimise(starts, np.ones((3, 20)), x, y, bounds)
    best = min(minimize(huber, s, (x, y), method="L-BFGS-B", bounds=bounds).fun for s in [*starts, *theta])
    assert (value <= best * 1.02).all()
