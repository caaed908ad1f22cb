"""The published optimizers in float64 NumPy, written from the papers, one parameter at a time.

A rule is ``rule(p, g, state, t, lr, **settings) -> new p``: ``t`` counts from 1, ``state`` is a dict that the rule
fills. Every rule decays as it is told: which parameters are decayed is the caller's choice.
"""

from __future__ import annotations

import numpy as np


def clip(gradients: dict[str, np.ndarray], max_norm: float) -> dict[str, np.ndarray]:
    """By the global norm, as ``torch.nn.utils.clip_grad_norm_``."""
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    factor = min(1.0, max_norm / (norm + 1e-6))
    return {name: g * factor for name, g in gradients.items()}


def adamw(p, g, state, t, lr, *, betas, eps, weight_decay=0.0):
    """Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019, algorithm 2."""
    state["m"] = betas[0] * state.get("m", 0.0) + (1 - betas[0]) * g
    state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g * g
    m_hat = state["m"] / (1 - betas[0] ** t)
    v_hat = state["v"] / (1 - betas[1] ** t)
    return p - lr * m_hat / (np.sqrt(v_hat) + eps) - lr * weight_decay * p


def sgd(p, g, state, t, lr, *, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Sutskever et al. 2013 as PyTorch writes it, with an L2 penalty."""
    g = g + weight_decay * p
    b = state["b"] = momentum * state.get("b", 0.0) + g
    return p - lr * (g + momentum * b if nesterov else b)


def lion(p, g, state, t, lr, *, betas, weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", np.zeros_like(p))
    update = np.sign(betas[0] * m + (1 - betas[0]) * g)
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return p - lr * (update + weight_decay * p)


def rms(x):
    return np.sqrt(np.mean(x**2))


def adafactor(
    p, g, state, t, lr, *, eps1, eps2, clip_threshold, decay_rate, beta1=None, scale_parameter=True, weight_decay=0.0
):
    """Shazeer and Stern 2018, algorithms 4 and 5, with sums as the paper has them; ``lr`` is its rho."""
    beta2 = 1 - t**-decay_rate
    squared = g**2 + eps1
    if g.ndim >= 2:
        r = state["r"] = beta2 * state.get("r", 0.0) + (1 - beta2) * squared.sum(-1)
        c = state["c"] = beta2 * state.get("c", 0.0) + (1 - beta2) * squared.sum(-2)
        v = r[..., :, None] * c[..., None, :] / r.sum(-1)[..., None, None]
    else:
        v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * squared
    u = g / np.sqrt(v)
    u = u / max(1.0, rms(u) / clip_threshold)
    change = (max(eps2, rms(p)) if scale_parameter else 1.0) * lr * u
    if beta1 is not None:
        change = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * change
    return p - change - lr * weight_decay * p


def newton_schulz(matrix: np.ndarray, steps: int) -> np.ndarray:
    """Jordan et al. 2024, by what it does to singular values: five odd polynomials of degree 5, one after another."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + 1e-7)
    for _ in range(steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


def muon(p, g, state, t, lr, *, momentum, nesterov, ns_steps, scale, weight_decay=0.0, stacked=False):
    """Jordan et al. 2024; ``match_rms_adamw``: Liu et al. 2025, equation 4."""
    m = state["m"] = momentum * state.get("m", 0.0) + g
    m = g + momentum * m if nesterov else m
    # Newton-Schulz divides by the norm, up to 1e-7, so a sum of gradients does as well as a mean; the mean is what
    # the published code keeps.
    m = (1 - momentum) * m
    matrices = m.reshape(-1, *m.shape[-2:]) if stacked else m.reshape(1, m.shape[0], -1)
    rows, columns = matrices.shape[-2:]
    factor = max(1.0, rows / columns) ** 0.5 if scale == "spectral" else 0.2 * max(rows, columns) ** 0.5
    update = factor * np.stack([newton_schulz(matrix, ns_steps) for matrix in matrices])
    return p - lr * update.reshape(p.shape) - lr * weight_decay * p
