"""Native sparse attention in float64 NumPy, query by query, from Yuan et al. 2025; shares nothing with lmxexp."""

import math

import numpy as np

from tests.reference.transformer import alibi_slopes, gelu, linear, rotate


def softmax(scores):
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


def compress(block, p, name):
    """``(block, C)`` to ``(C,)``."""
    hidden = gelu(linear((block + p[f"{name}.position"]).reshape(-1), p, f"{name}.inner"))
    return linear(hidden, p, f"{name}.outer")


def native_sparse_attention(x, p, *, n_heads, n_kv_heads, block, n_selected, window, position="rope"):
    """``(T, D)`` to outputs of the same shape, and the blocks selected, by query and key head.

    Args:
        p: parameters by lmxexp's names, below the mixer.
        position: rope, alibi or none.
    """
    T, K, group = len(x), n_kv_heads, n_heads // n_kv_heads
    C = p["q_proj.weight"].shape[0] // n_heads
    q = linear(x, p, "q_proj").reshape(T, n_heads, C)
    k = linear(x, p, "k_proj").reshape(T, 3, K, C)
    v = linear(x, p, "v_proj").reshape(T, 3, K, C)
    gate = (1 / (1 + np.exp(-linear(x, p, "g_proj")))).reshape(T, n_heads, 3)

    def attend(t, h, branch, where):
        """Head h's query at t to these positions."""
        scores = []
        for s in where:
            a, b = q[t, h], k[s, branch, h // group]
            if position == "rope":
                a, b = rotate(a, t), rotate(b, s)
            bias = -alibi_slopes(n_heads)[h] * (t - s) if position == "alibi" else 0.0
            scores.append(a @ b / math.sqrt(C) + bias)
        return softmax(scores) @ v[where, branch, h // group]

    y = np.zeros((T, n_heads, C))
    selected = {}
    for t in range(T):
        complete = (t + 1) // block
        own = t // block
        for g in range(K):
            heads = range(g * group, (g + 1) * group)
            importance = np.zeros(own + 1)
            for h in heads:
                if complete == 0:
                    continue
                blocks = [slice(i * block, (i + 1) * block) for i in range(complete)]
                keys = np.stack([compress(k[b, 0, g], p, "compress_k") for b in blocks])
                values = np.stack([compress(v[b, 0, g], p, "compress_v") for b in blocks])
                weights = softmax(keys @ q[t, h] / math.sqrt(C))
                importance[:complete] += weights
                y[t, h] += gate[t, h, 0] * (weights @ values)
            chosen = {0, own}
            for i in np.argsort(-importance):
                if len(chosen) < n_selected:
                    chosen.add(int(i))
            selected[t, g] = chosen
            seen = [s for s in range(t + 1) if s // block in chosen]
            near = list(range(max(0, t - window + 1), t + 1))
            for h in heads:
                y[t, h] += gate[t, h, 1] * attend(t, h, 1, seen)
                y[t, h] += gate[t, h, 2] * attend(t, h, 2, near)
    return linear(y.reshape(T, -1), p, "o_proj"), selected
