"""Mixtures of experts in float64, token by token, from the papers' formulas."""

import math

import numpy as np


def mixture(
    x,
    p,
    *,
    top_k,
    score="softmax",
    normalise=True,
    scale=1.0,
    n_groups=1,
    topk_groups=1,
    weigh="output",
    expert="silu",
    alpha=1.702,
    limit=7.0,
    shared=False,
    balance_weight=0.0,
    z_weight=0.0,
):
    """Tokens ``(T, D)`` to ``(T, D)``, each token's choice, the load of each expert, and the auxiliary losses.

    ``p`` holds the parameters by name.
    """
    T, D = x.shape
    gate = p["router.gate.weight"]
    E = gate.shape[0]
    gate_bias = p.get("router.gate.bias", np.zeros(E))
    correction = p.get("router.e_score_correction_bias", np.zeros(E))
    y = np.zeros_like(x)
    counts = np.zeros(E)
    mean_probs = np.zeros(E)
    z = 0.0
    choices = []
    for t in range(T):
        logits = np.array([sum(gate[e, d] * x[t, d] for d in range(D)) + gate_bias[e] for e in range(E)])
        if score == "softmax":
            scores = np.exp(logits) / sum(math.exp(v) for v in logits)
            probs = scores
        else:
            scores = np.array([1.0 / (1.0 + math.exp(-v)) for v in logits])
            probs = scores / scores.sum()
        chosen = choose(scores + correction, top_k, n_groups, topk_groups, best_of_group=1 if score == "softmax" else 2)
        choices.append(chosen)
        total = sum(scores[e] for e in chosen) if normalise else 1.0
        for e in chosen:
            weight = scale * scores[e] / total
            if weigh == "input":
                y[t] += one_expert(weight * x[t], p, e, expert, alpha, limit)
            else:
                y[t] += weight * one_expert(x[t], p, e, expert, alpha, limit)
            counts[e] += 1
        if shared:
            y[t] += shared_expert(x[t], p)
        mean_probs += probs / T
        z += math.log(sum(math.exp(v) for v in logits)) ** 2 / T
    share = counts / (T * top_k)
    balance = E * sum(share[e] * mean_probs[e] for e in range(E))
    return y, choices, share * E, {"balance_loss": balance_weight * balance, "router_z_loss": z_weight * z}


def choose(scores, top_k, n_groups, topk_groups, best_of_group):
    """The chosen experts, best first; of equal ones the first."""
    size = len(scores) // n_groups
    of_group = [sum(sorted(scores[g * size : (g + 1) * size])[-best_of_group:]) for g in range(n_groups)]
    groups = sorted(range(n_groups), key=lambda g: -of_group[g])[:topk_groups]
    allowed = [e for e in range(len(scores)) if e // size in groups]
    return sorted(allowed, key=lambda e: -scores[e])[:top_k]


def one_expert(x, p, e, expert, alpha, limit):
    def linear(name, v):
        return p[f"experts.{name}.weight"][e] @ v + p.get(f"experts.{name}.bias", {e: 0.0})[e]

    up = linear("up_proj", x)
    if expert == "relu2":
        return linear("down_proj", np.maximum(up, 0.0) ** 2)
    gate = linear("gate_proj", x)
    if expert == "clamped":
        gate, up = np.minimum(gate, limit), np.maximum(np.minimum(up, limit), -limit)
        return linear("down_proj", (up + 1.0) * gate / (1.0 + np.exp(-alpha * gate)))
    return linear("down_proj", gate / (1.0 + np.exp(-gate)) * up)


def shared_expert(x, p):
    def linear(name, v):
        return p[f"shared_expert.{name}.weight"] @ v + p.get(f"shared_expert.{name}.bias", 0.0)

    gate = linear("gate_proj", x)
    y = linear("down_proj", gate / (1.0 + np.exp(-gate)) * linear("up_proj", x))
    if "shared_expert.shared_expert_gate.weight" in p:
        y = y / (1.0 + np.exp(-(p["shared_expert.shared_expert_gate.weight"] @ x)))
    return y
