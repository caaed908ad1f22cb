"""Many small fits of a scaling law at once: a BFGS of our own whose steps are NumPy operations over all of them.

SciPy's optimisers take one problem at a time, and its L-BFGS-B calls threaded BLAS on matrices of five rows, whose
threads wait for each other ten times longer than they work on a busy machine. A bootstrap is a thousand problems.
"""

from __future__ import annotations

import numpy as np

DELTA = 1e-3
"""Where the Huber loss of ``log L`` turns from squares to absolute values: Hoffmann et al.'s. Residuals of real runs
are larger, so a run that went wrong pulls no harder than any other."""
_MAX_STEPS = 400
_MAX_HALVINGS = 30
_ENOUGH = 1e-4
"""Of the decrease that the slope promises, as much makes a step a good one."""
_CONVERGED = 1e-9
"""Relative decrease below which a step counts as none; after two in a row it is over."""


def objective(theta: np.ndarray, weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Huber loss of ``log L``, in units of `DELTA`, and its gradient.

    Bounds keep ``exp`` far from overflow, so the sum of exponentials needs no shift.

    Args:
        theta: (R, 1 + 2k): the logarithms of E and of each term where ``x`` is 0, then the k exponents.
        weights: (R, n), how often each run counts.
        x: (k, n), logarithms of size and tokens.
        y: (n), logarithms of the losses.

    Returns:
        (R) and (R, 1 + 2k).
    """
    k = len(x)
    terms = np.exp(theta[:, 1 : 1 + k, None] - theta[:, 1 + k :, None] * x)
    floor = np.exp(theta[:, :1])
    total = floor + terms.sum(1)
    residual = np.log(total) - y
    clipped = np.clip(residual, -DELTA, DELTA)
    value = (weights * clipped * (residual - 0.5 * clipped)).sum(1) / DELTA
    pull = weights * clipped / (DELTA * total)
    by_term = pull[:, None] * terms
    gradient = [(floor * pull).sum(1, keepdims=True), by_term.sum(2), -(by_term * x).sum(2)]
    return value, np.concatenate(gradient, 1)


def minimise(
    starts: np.ndarray, weights: np.ndarray, x: np.ndarray, y: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The minima near the starts, within bounds, and the objective there.

    BFGS with the exact gradient and halved steps; a parameter on its bound stays there while the gradient pushes it
    out.

    Args:
        starts: (R, P).
        weights: (R, n).
        bounds: (P, 2).

    Returns:
        (R, P) and (R).
    """
    low, high = bounds.T
    theta = np.clip(starts, low, high)
    value, gradient = objective(theta, weights, x, y)
    n, size = theta.shape
    identity = np.eye(size) / np.maximum(np.abs(gradient).max(1), 1.0)[:, None, None]
    inverse = identity.copy()
    idle = np.zeros(n, dtype=int)
    at = np.arange(n)  # those that are not there yet
    for _ in range(_MAX_STEPS):
        t, g, h = theta[at], gradient[at], inverse[at]
        stuck = ((t <= low) & (g > 0)) | ((t >= high) & (g < 0))
        free = np.where(stuck, 0.0, g)
        direction = np.where(stuck, 0.0, -np.einsum("rij,rj->ri", h, free))
        uphill = (direction * g).sum(1) >= 0
        direction[uphill] = -np.einsum("rij,rj->ri", identity[at[uphill]], free[uphill])
        inverse[at[uphill]] = identity[at[uphill]]
        new, new_value, new_gradient = _line_search(t, value[at], g, direction, weights[at], x, y, bounds)
        decrease = value[at] - new_value
        failed = decrease <= 0
        inverse[at] = np.where(failed[:, None, None], identity[at], _updated(inverse[at], new - t, new_gradient - g))
        small = decrease <= _CONVERGED * np.abs(new_value) + 1e-14
        idle[at] = np.where(small, idle[at] + 1, 0)
        theta[at], value[at], gradient[at] = new, new_value, new_gradient
        at = at[idle[at] < 2]
        if len(at) == 0:
            break
    return theta, value


def _line_search(
    theta: np.ndarray, value: np.ndarray, gradient: np.ndarray, direction: np.ndarray, weights: np.ndarray,
    x: np.ndarray, y: np.ndarray, bounds: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Halve each step until it pays; one that never does is not taken."""
    best, best_value, best_gradient = theta.copy(), value.copy(), gradient.copy()
    length, open_ = 1.0, np.arange(len(theta))
    for _ in range(_MAX_HALVINGS):
        tried = np.clip(theta[open_] + length * direction[open_], *bounds.T)
        f, g = objective(tried, weights[open_], x, y)
        promised = ((tried - theta[open_]) * gradient[open_]).sum(1)
        good = f <= value[open_] + _ENOUGH * np.minimum(promised, 0)
        done = open_[good]
        best[done], best_value[done], best_gradient[done] = tried[good], f[good], g[good]
        open_ = open_[~good]
        if len(open_) == 0:
            break
        length /= 2
    return best, best_value, best_gradient


def _updated(inverse: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The BFGS update of the inverse Hessians, where the curvature along the step is positive."""
    curvature = (step * change).sum(1)
    valid = curvature > 1e-10 * np.sqrt((step**2).sum(1) * (change**2).sum(1)) + 1e-300
    rho = np.where(valid, 1 / np.where(valid, curvature, 1.0), 0.0)
    shrink = np.eye(step.shape[1]) - rho[:, None, None] * step[:, :, None] * change[:, None, :]
    updated = shrink @ inverse @ shrink.transpose(0, 2, 1) + rho[:, None, None] * step[:, :, None] * step[:, None, :]
    return np.where(valid[:, None, None], updated, inverse)
