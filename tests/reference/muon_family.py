"""What followed Muon, in float64 NumPy, written from the papers; rules as in `tests.reference.optimizers`."""

from __future__ import annotations

import numpy as np

from tests.reference.optimizers import newton_schulz, rms


def matrices_of(a, stacked):
    """``(n, rows, columns)``: the matrices of a stack, or the one that a convolution is."""
    return a.reshape(-1, *a.shape[-2:]) if stacked else a.reshape(1, a.shape[0], -1)


def normuon(p, g, state, t, lr, *, momentum, beta2, eps, nesterov, ns_steps, scale, weight_decay=0.0, stacked=False):
    """Li et al. 2025, algorithm 1, one matrix and one neuron after the other; ``spectral``: the authors' code."""
    m = state["m"] = momentum * state.get("m", 0.0) + (1 - momentum) * g
    m = momentum * m + (1 - momentum) * g if nesterov else m
    update = []
    for i, matrix in enumerate(matrices_of(m, stacked)):
        o = newton_schulz(matrix, ns_steps)
        rows, columns = o.shape
        balanced = np.empty_like(o)
        for row in range(rows):
            v = state["v", i, row] = beta2 * state.get(("v", i, row), 0.0) + (1 - beta2) * np.mean(o[row] ** 2)
            balanced[row] = o[row] / (np.sqrt(v) + eps)
        if scale == "spectral":
            norm = np.linalg.norm(o) * max(1.0, rows / columns) ** 0.5
        else:
            norm = 0.2 * np.sqrt(rows * columns)
        update.append(norm * balanced / np.linalg.norm(balanced))
    return p - lr * np.stack(update).reshape(p.shape) - lr * weight_decay * p


def scion(p, g, state, t, lr, *, momentum, radius, norm, constrained, ns_steps=5, stacked=False):
    """Pethick et al. 2025, algorithms 1 and 2 (``constrained``); ``momentum`` is 1 less their alpha.

    ``norm``: spectral, sign, sign_per_input or rms. A convolution is ``(out, width, in)``.
    """
    d = state["d"] = momentum * state.get("d", 0.0) + (1 - momentum) * g
    if norm == "spectral":
        u = np.stack([newton_schulz(matrix, ns_steps) for matrix in matrices_of(d, stacked)]).reshape(d.shape)
        n_out, width, n_in = d.shape[-2 if stacked else 0], 1 if stacked or d.ndim == 2 else d.shape[1], d.shape[-1]
        lmo = -radius * np.sqrt(n_out / n_in) / width * u
    elif norm == "sign":
        lmo = -radius * np.sign(d)
    elif norm == "sign_per_input":
        lmo = -radius * np.sign(d) / d.shape[-1]
    else:
        lmo = -radius * d / rms(d)
    return (1 - lr) * p + lr * lmo if constrained else p + lr * lmo


def dion(p, g, state, t, lr, *, momentum, rank_fraction, eps, start, weight_decay=0.0, stacked=False):
    """Ahn et al. 2025, algorithm 1, with a QR decomposition; ``start``: the first right factors, one for a matrix."""
    update, keep = [], []
    b = state.get("m", np.zeros_like(p)) + g
    for i, matrix in enumerate(matrices_of(b, stacked)):
        rows, columns = matrix.shape
        assert start[i].shape == (columns, int(np.ceil(rank_fraction * min(rows, columns))))
        left, _ = np.linalg.qr(matrix @ state.get(("q", i), start[i]))
        right = matrix.T @ left
        keep.append(matrix - (1 - momentum) * left @ right.T)
        q = state["q", i] = right / (np.linalg.norm(right, axis=0) + eps)
        update.append(np.sqrt(rows / columns) * left @ q.T)
    state["m"] = np.stack(keep).reshape(p.shape)
    return p - lr * np.stack(update).reshape(p.shape) - lr * weight_decay * p
