"""The published preconditioned optimizers in float64 NumPy, by decompositions and solves, one matrix at a time.

A rule is as those of `tests.reference.optimizers`. ``stacked`` and a weight of more than two axes: a stack of matrices,
each by itself; not ``stacked``: one matrix, ``(first axis, everything else)``. ``turns`` are the remainders of the step
at which the left and the right side are refreshed.
"""

from __future__ import annotations

import functools

import numpy as np

from tests.reference.optimizers import adamw


def of_matrices(rule):
    """The rule of one matrix, for weights of any shape; AdamW for vectors."""

    @functools.wraps(rule)
    def of_any(p, g, state, t, lr, *, betas, eps, weight_decay=0.0, stacked=False, noise=None, **settings):
        if p.ndim < 2:
            return adamw(p, g, state, t, lr, betas=betas, eps=eps, weight_decay=weight_decay)
        shape = p.shape if stacked or p.ndim == 2 else (p.shape[0], -1)
        matrices, gradients = p.reshape(shape), g.reshape(shape)
        matrices, gradients = (x.reshape(-1, *x.shape[-2:]) for x in (matrices, gradients))
        noise = [None] * len(matrices) if noise is None else noise(t).reshape(matrices.shape)
        new = []
        for i, (matrix, gradient) in enumerate(zip(matrices, gradients, strict=True)):
            settings_of_one = settings if noise[i] is None else settings | {"noise": noise[i]}
            change = rule(matrix, gradient, state.setdefault(i, {}), t, betas=betas, eps=eps, **settings_of_one)
            new.append(matrix - lr * change - lr * weight_decay * matrix)
        return np.stack(new).reshape(p.shape)

    return of_any


def statistics(g, state, beta, max_dim, start):
    """Means of G G^T and G^T G; None for a long side."""
    for name, product in (("L", g @ g.T), ("R", g.T @ g)):
        n = len(product)
        state[name] = None if n > max_dim else beta * state.get(name, start * np.eye(n)) + (1 - beta) * product


@of_matrices
def soap(p, g, state, t, *, betas, eps, every=1, turns=(0, 0), max_dim=10_000, start=0.0):
    """Vyas et al. 2024, algorithms 3 and 4, from the identity, with the authors' order of columns."""
    rows, columns = p.shape
    ql, qr = state.get("QL", np.eye(rows)), state.get("QR", np.eye(columns))
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * (ql.T @ g @ qr) ** 2
    rotated = ql.T @ m @ qr / (1 - betas[0] ** t)
    change = ql @ (rotated / (np.sqrt(v / (1 - betas[1] ** t)) + eps)) @ qr.T
    statistics(g, state, betas[1], max_dim, start)
    for name, q, axis, turn in (("L", ql, 0, turns[0]), ("R", qr, 1, turns[1])):
        if state[name] is not None and t % every == turn:
            estimates = np.diag(q.T @ state[name] @ q)
            order = np.argsort(-estimates, kind="stable")
            q = np.linalg.qr(state[name] @ q[:, order])[0]
            state["v"] = np.take(state["v"], order, axis)
        state["Q" + name] = q
    return change


def inverse_power(matrix, exponent, damping):
    damped = matrix + damping * np.linalg.norm(matrix) * np.eye(len(matrix))
    values, vectors = np.linalg.eigh(damped)
    return (vectors * values**-exponent) @ vectors.T


@of_matrices
def shampoo(p, g, state, t, *, betas, eps, damping, every=1, turns=(0, 0), max_dim=10_000, start=0.0):
    """Gupta et al. 2018, algorithm 1, with the means, the mean gradient and the grafting of Shi et al. 2023, algorithm
    2, and the damping of Anil et al. 2020."""
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    m_hat = m / (1 - betas[0] ** t)
    adam = m_hat / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    statistics(g, state, betas[1], max_dim, start)
    sides = [name for name in "LR" if state[name] is not None]
    if not sides:
        return adam
    for name in sides:
        if t % every == turns["LR".index(name)]:
            state["P" + name] = inverse_power(state[name], 1 / (2 * len(sides)), damping)
    if t < every:
        return adam
    direction = state.get("PL", np.eye(p.shape[0])) @ m_hat @ state.get("PR", np.eye(p.shape[1]))
    return direction * np.linalg.norm(adam) / np.linalg.norm(direction)


def lower_bound(a):
    """Of the largest eigenvalue, Li's: two power iterations from the longest row."""
    x = a @ a[np.argmax(np.sum(a**2, axis=1))]
    return np.linalg.norm(a @ x / np.linalg.norm(x))


@of_matrices
def kron(p, g, state, t, *, betas, eps, noise, precondition_rate, damping, max_rms, every=1, turns=(0,), max_dim=8192):
    """Li 2022 and Walters 2024: triangular or diagonal factors, fitted to the mean gradient, by solves."""
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    m = m / (1 - betas[0] ** t)
    factors = state.setdefault("Q", [np.eye(n) for n in p.shape])
    if t % every == turns[0]:
        left, right = factors
        a = left @ (m + damping * noise) @ right.T
        b = np.linalg.solve(left.T, np.linalg.solve(right.T, noise.T).T)  # Q_L^-T V Q_R^-1
        for i, (of_a, of_b) in enumerate(((a @ a.T, b @ b.T), (a.T @ a, b.T @ b))):
            difference, total = np.triu(of_a - of_b), of_a + of_b
            if len(total) > max_dim:
                difference, size = np.diag(np.diag(difference)), np.diag(total).max()
            else:
                size = lower_bound(total)
            factors[i] = factors[i] - precondition_rate / size * difference @ factors[i]
    left, right = factors
    change = left.T @ left @ m @ right.T @ right
    return change * min(1.0, max_rms / (np.sqrt(np.mean(change**2)) + 1e-6))
