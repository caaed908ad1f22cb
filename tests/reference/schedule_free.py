"""Schedule-free optimizers, Prodigy, and what Cautious and Grams make of a change, in float64 NumPy, from the papers.

Rules are as in `tests.reference.optimizers`, but for `prodigy`, which needs all parameters at once.
"""

from __future__ import annotations

import numpy as np


def _interpolated(y, state, lr, beta, step_of_z):
    """Defazio et al. 2024, equations 3 to 5: ``x`` and ``z`` are in ``state``; from one ``y`` to the next."""
    x, z = state.get("x", y), state.get("z", y)
    z = z - step_of_z
    state["weights"] = [*state.get("weights", []), lr**2]
    c = state["weights"][-1] / sum(state["weights"])
    x = (1 - c) * x + c * z
    state.update(x=x, z=z)
    return (1 - beta) * z + beta * x


def schedule_free_sgd(p, g, state, t, lr, *, momentum, weight_decay=0.0):
    """Defazio et al. 2024, equations 3 to 5, with the weights of algorithm 1."""
    return _interpolated(p, state, lr, momentum, lr * (g + weight_decay * p))


def schedule_free_adamw(p, g, state, t, lr, *, betas, eps, weight_decay=0.0):
    """Defazio et al. 2024, algorithm 1."""
    v = state["v"] = betas[1] * state.get("v", 0.0) + (1 - betas[1]) * g**2
    v_hat = v / (1 - betas[1] ** t)
    return _interpolated(p, state, lr, betas[0], lr * g / (np.sqrt(v_hat) + eps) + lr * weight_decay * p)


def prodigy(p, g, state, lr, *, betas, eps, d0, decay, d_coef=1.0, safeguard_warmup=False):
    """Mishchenko and Defazio 2023, algorithm 4. ``p`` and ``g`` are all parameters as one vector, and ``decay`` is
    each number's weight decay; ``lr`` is the paper's gamma."""
    beta1, beta2 = betas
    root = np.sqrt(beta2)
    d, x0 = state.get("d", d0), state.setdefault("x0", p)
    m = state["m"] = beta1 * state.get("m", 0.0) + (1 - beta1) * d * g
    v = state["v"] = beta2 * state.get("v", 0.0) + (1 - beta2) * d**2 * g**2
    r = state["r"] = root * state.get("r", 0.0) + (1 - root) * lr * d**2 * (g @ (x0 - p))
    s = state["s"] = root * state.get("s", 0.0) + (1 - root) * (1.0 if safeguard_warmup else lr) * d**2 * g
    state["d"] = max(d, d_coef * r / np.abs(s).sum())
    return p - lr * d * m / (np.sqrt(v) + d * eps) - lr * d * decay * p


def cautious(u, g):
    """Liang et al. 2024, algorithm 2: the direction ``u`` where it agrees with ``g``."""
    mask = (u * g > 0).astype(float)
    return u * mask * (mask.size / (mask.sum() + 1))


def grams(u, g):
    """Cao et al. 2024, algorithm 1."""
    return np.sign(g) * np.abs(u)


def wrapped(wrapper, rule):
    """The rule whose change, decay apart, goes through a wrapper; ``rule`` has no decay but this one."""

    def new_rule(p, g, state, t, lr, *, weight_decay=0.0, **settings):
        change = -rule(np.zeros_like(p), g, state, t, lr, **settings)  # none of these rules looks at p
        return p - wrapper(change, g) - lr * weight_decay * p

    return new_rule
