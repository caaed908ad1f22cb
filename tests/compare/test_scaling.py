"""Chinchilla's law on synthetic runs whose coefficients are known."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from lmxexp.compare.scaling import _interval, fit
from lmxexp.interfaces import ConfigError

TRUE = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022, approach 3."""
SIZES = np.array([1e6, 3e6, 1e7, 3e7, 1e8, 3e8])
BUDGETS = np.array([3e7, 1e8, 3e8, 1e9, 3e9])


def law(n, d, c=TRUE):
    return c["E"] + c["A"] / n ** c["alpha"] + c["B"] / d ** c["beta"]


def runs(noise, seed=0, sizes=SIZES, budgets=BUDGETS, seeds=2):
    n, d = (v.ravel() for v in np.meshgrid(sizes, budgets))
    n, d = np.tile(n, seeds), np.tile(d, seeds)
    return n, d, law(n, d) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))


def test_exact_losses_give_exact_coefficients():
    found = fit(*runs(0.0), bootstrap=20)
    for name, value in TRUE.items():
        assert getattr(found, name) == pytest.approx(value, rel=0.02), name
    assert found.spread < 1e-5
    assert found.warnings == []


def test_known_coefficients_are_inside_the_intervals():
    """95 % intervals over 20 experiments of 60 runs each: of 100, at least 90 hold the truth, and not by being
    wide."""
    inside, widths = [], []
    for seed in range(20):
        found = fit(*runs(0.003, seed), bootstrap=200, rng_seed=seed)
        for name, value in TRUE.items():
            low, high = found.intervals[name]
            assert low <= getattr(found, name) <= high
            inside.append(low <= value <= high)
            widths.append((high - low) / value if name in ("E", "alpha", "beta") else 0)
    assert np.mean(inside) >= 0.85
    assert max(widths) < 0.5


def test_the_minimum_is_scipys():
    """Another parametrisation, another optimiser, from many starts: E, A, B, alpha, beta by L-BFGS-B."""
    n, d, loss = runs(0.01, 3)
    found = fit(n, d, loss, bootstrap=20)

    def huber(theta):
        e, a, b, alpha, beta = theta
        r = np.abs(np.logaddexp.reduce([e + 0 * n, a - alpha * np.log(n), b - beta * np.log(d)], axis=0) - np.log(loss))
        return 1e3 * np.sum(np.where(r <= 1e-3, 0.5 * r**2, 1e-3 * (r - 5e-4)))

    starts = [(e, a, b, s, t) for e in (0, 0.5) for a in (3, 8) for b in (3, 8) for s in (0.2, 0.5) for t in (0.2, 0.5)]
    best = min(minimize(huber, s, method="L-BFGS-B", options={"maxiter": 3000, "maxfun": 99999}).fun for s in starts)
    ours = huber((np.log(found.E), np.log(found.A), np.log(found.B), found.alpha, found.beta))
    assert ours <= best * 1.005


def test_an_outlier_pulls_no_harder_than_others():
    n, d, loss = runs(0.0)
    loss = loss.copy()
    loss[7] *= 3
    found = fit(n, d, loss, bootstrap=20)
    assert pytest.approx(TRUE["E"], rel=0.05) == found.E
    assert found.alpha == pytest.approx(TRUE["alpha"], rel=0.05)


def test_order_and_repetition_of_the_draws():
    n, d, loss = runs(0.01)
    one, same, other = (fit(n, d, loss, bootstrap=50, rng_seed=s) for s in (1, 1, 2))
    assert one.intervals == same.intervals
    assert one.intervals != other.intervals
    assert one.E == other.E
    order = np.random.default_rng(0).permutation(len(n))
    assert pytest.approx(one.E, rel=1e-3) == fit(n[order], d[order], loss[order], bootstrap=20).E


@pytest.mark.parametrize("axis", ["size", "tokens"])
def test_one_axis_alone(axis):
    """All at one token budget: its term is part of E."""
    sizes, budgets = (SIZES, BUDGETS[2:3]) if axis == "size" else (SIZES[2:3], BUDGETS)
    n, d, loss = runs(0.0, sizes=sizes, budgets=budgets)
    found = fit(n, d, loss, bootstrap=20)
    if axis == "size":
        assert found.fitted == ("E", "A", "alpha")
        assert found.alpha == pytest.approx(TRUE["alpha"], rel=0.02)
        assert pytest.approx(TRUE["E"] + TRUE["B"] / BUDGETS[2] ** TRUE["beta"], rel=0.02) == found.E
    else:
        assert found.fitted == ("E", "B", "beta")
        assert found.beta == pytest.approx(TRUE["beta"], rel=0.02)
    np.testing.assert_allclose(found.predict(n, d), loss, rtol=1e-3)
    assert np.isnan(found.B if axis == "size" else found.A)
    with pytest.raises(ConfigError, match=f"one {'token budget' if axis == 'size' else 'size'}: add runs"):
        found.optimal(1e18)


def test_a_size_that_is_matched_is_one_size():
    """Parameters that differ by less than 1 % are one size, as of arms that are matched."""
    n, d, loss = runs(0.0, sizes=np.array([1e6, 1.004e6]))
    assert fit(n, d, loss, bootstrap=20).fitted == ("E", "B", "beta")


def test_predictions_and_their_intervals():
    found = fit(*runs(0.003), bootstrap=200)
    np.testing.assert_allclose(found.predict(SIZES, 1e9), law(SIZES, 1e9, {k: getattr(found, k) for k in TRUE}))
    low, high = found.interval(1e8, 1e9)
    assert low < found.predict(1e8, 1e9) < high
    values = [law(1e8, 1e9, {k: found.samples[k][i] for k in TRUE}) for i in range(200)]
    assert low == pytest.approx(np.quantile(values, 0.025, method="lower"))
    assert high == pytest.approx(np.quantile(values, 0.975, method="higher"))
    far, near = (found.interval(n, 3e9) for n in (1e11, 1e8))
    assert far[1] - far[0] > near[1] - near[0]


@pytest.mark.parametrize("flops", [1e16, 1e20])
def test_the_best_size_is_the_minimum_along_the_budget(flops):
    found = fit(*runs(0.0), bootstrap=50)
    best = found.optimal(flops)
    search = minimize_scalar(
        lambda log_n: float(found.predict(np.exp(log_n), flops / 6 / np.exp(log_n))), bounds=(5, 40)
    )
    assert best.n_params == pytest.approx(np.exp(search.x), rel=1e-3)
    assert 6 * best.n_params * best.n_tokens == pytest.approx(flops)
    assert best.loss == pytest.approx(search.fun, rel=1e-9)
    assert best.n_params_interval[0] <= best.n_params * 1.001
    assert best.extrapolated == (flops == 1e20)


def test_what_cannot_be_told_is_warned_of():
    n, d, _ = runs(0.0)
    flat = fit(
        n, d, 2 + TRUE["B"] / d ** TRUE["beta"] + np.random.default_rng(0).normal(0, 0.01, len(n)), bootstrap=100
    )
    assert any("size has no visible effect" in w or "interval of alpha includes 0" in w for w in flat.warnings)
    floorless = fit(n, d, 30 / n**0.1 + 30 / d**0.1, bootstrap=20)
    assert any("no floor yet" in w for w in floorless.warnings) or floorless.E < 0.3


def test_percentiles_of_resamples():
    """Two of a hundred are infinite, as an exponent of 0 makes them, and one is none: the ends are finite."""
    values = np.array([*range(97), np.inf, np.inf, np.nan], dtype=float)
    assert _interval(values) == (2.0, 96.0)
    assert _interval(np.array([*range(199), np.inf], dtype=float)) == (4.0, 195.0)
    assert all(np.isnan(end) for end in _interval(np.array([np.nan])))
