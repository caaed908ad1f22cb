"""Adam's relatives in float64 NumPy, written from the papers, one parameter at a time.

Rules as in `tests.reference.optimizers`; ``t`` counts from 1.
"""

from __future__ import annotations

import numpy as np


def nadamw(p, g, state, t, lr, *, betas, eps, momentum_decay, weight_decay=0.0):
    """Dozat 2016, algorithm 2 with the momentum's schedule of its section on it, as PyTorch writes it."""
    mu, following = (betas[0] * (1 - 0.5 * 0.96 ** (step * momentum_decay)) for step in (t, t + 1))
    product = state["product"] = state.get("product", 1.0) * mu
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g * g
    m_bar = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
    return p - lr * m_bar / (np.sqrt(v / (1 - betas[1] ** t)) + eps) - lr * weight_decay * p


def signum(p, g, state, t, lr, *, momentum, weight_decay=0.0):
    """Bernstein et al. 2018, algorithm 2; algorithm 1 without momentum."""
    m = state["m"] = momentum * state.get("m", 0.0) + (1 - momentum) * g
    return p - lr * np.sign(m) - lr * weight_decay * p


def ademamix(p, g, state, t, lr, *, betas, eps, alpha, beta3, alpha_steps=None, beta3_steps=None, weight_decay=0.0):
    """Pagliardini et al. 2024, algorithm 1; the half-lives of its appendix instead of the closed form."""
    if alpha_steps is not None:
        alpha = min(t * alpha / alpha_steps, alpha)
    if beta3_steps is not None and t < beta3_steps:
        first, last = (np.log(0.5) / np.log(beta) for beta in (betas[0], beta3))
        beta3 = 0.5 ** (1 / (first + (last - first) * t / beta3_steps))
    m1 = state["m1"] = betas[0] * state.get("m1", 0.0) + (1 - betas[0]) * g
    m2 = state["m2"] = beta3 * state.get("m2", 0.0) + (1 - beta3) * g
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g * g
    direction = (m1 / (1 - betas[0] ** t) + alpha * m2) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p - lr * (direction + weight_decay * p)


def adopt(p, g, state, t, lr, *, betas, eps, clip_exponent, weight_decay=0.0):
    """Taniguchi et al. 2024, algorithm 2: its ``g_0`` comes with the first step."""
    decayed = p - lr * weight_decay * p
    if t == 1:
        state["m"], state["v"] = np.zeros_like(p), g * g
        return decayed
    direction = g / np.maximum(np.sqrt(state["v"]), eps)
    if clip_exponent is not None:
        limit = (t - 1) ** clip_exponent
        direction = np.clip(direction, -limit, limit)
    m = state["m"] = betas[0] * state["m"] + (1 - betas[0]) * direction
    state["v"] = betas[1] * state["v"] + (1 - betas[1]) * g * g
    return decayed - lr * m


def adamw(p, g, state, t, lr, *, betas, eps, weight_decay=0.0, squared=None):
    """Kingma and Ba 2015, with another array for the squared gradient if it is given."""
    m = state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * (g * g if squared is None else squared)
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)


def each_matrix(p, stacked):
    """Places of the matrices whose norms count: one after another in a stack, else all at once."""
    return range(len(p)) if stacked else [...]


def mars(p, g, state, t, lr, *, betas, eps, gamma, weight_decay=0.0, stacked=False, corrected=True):
    """Yuan et al. 2024, MARS-AdamW with ``grad f(x_{t-1}, xi_{t-1})`` for the last gradient, and ``x_0 = x_1``."""
    if corrected:
        c = g + gamma * betas[0] / (1 - betas[0]) * (g - state.get("g", g))
        state["g"] = g
        for place in each_matrix(c, stacked):
            norm = np.linalg.norm(c[place])
            if norm > 1:
                c[place] = c[place] / norm
        g = c
    return adamw(p, g, state, t, lr, betas=betas, eps=eps, weight_decay=weight_decay)


def lamb(p, g, state, t, lr, *, betas, eps, weight_decay=0.0, stacked=False, scaled=True):
    """You et al. 2020, algorithm 2."""
    u = -adamw(np.zeros_like(p), g, state, t, 1.0, betas=betas, eps=eps) + weight_decay * p
    if scaled:
        for place in each_matrix(p, stacked):
            u[place] = u[place] * np.linalg.norm(p[place]) / np.linalg.norm(u[place])
    return p - lr * u


def adam_mini(p, g, state, t, lr, *, betas, eps, n_outer, weight_decay=0.0):
    """Zhang et al. 2024, algorithm 1: each index of the first ``n_outer`` axes is a block."""
    squared = np.empty_like(g)
    for block in np.ndindex(g.shape[:n_outer]):
        squared[block] = np.mean(g[block] ** 2)
    return adamw(p, g, state, t, lr, betas=betas, eps=eps, weight_decay=weight_decay, squared=squared)
