"""RWKV-7 in float64 NumPy, position by position, in the notation of Peng et al. 2025; shares nothing with lmxexp."""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, weight, bias, eps):
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


def low_rank(x, p, name, activation=lambda h: h):
    y = p[f"{name}.up.weight"] @ activation(p[f"{name}.down.weight"] @ x)
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def time_mixing(xs, p, n_heads, first_values=None, eps=64e-5):
    """Outputs of one sequence and its values (before they are mixed with the first layer's).

    Args:
        xs: inputs, one vector a position.
        p: parameters by lmxexp's names, below the mixer.
        first_values: of the first layer; None: this is the first.
    """
    C = p["r_proj.weight"].shape[0] // n_heads
    state = np.zeros((n_heads, C, C))  # rows: values, columns: keys
    before = np.zeros_like(xs[0])
    outputs, values = [], []
    for t, x in enumerate(xs):
        shifted = {m: x + (before - x) * p[f"x_{m}"] for m in "rwkvag"}
        r = p["r_proj.weight"] @ shifted["r"]
        k = p["k_proj.weight"] @ shifted["k"]
        v = p["v_proj.weight"] @ shifted["v"]
        w = np.exp(-np.exp(-0.5) * sigmoid(low_rank(shifted["w"], p, "w_lora", np.tanh)))
        a = sigmoid(low_rank(shifted["a"], p, "a_lora"))
        g = low_rank(shifted["g"], p, "g_lora", sigmoid)
        values.append(v)
        if first_values is not None:
            share = sigmoid(low_rank(shifted["v"], p, "v_lora"))
            v = (1 - share) * v + share * first_values[t]
        kappa = k * p["k_k"]
        k = k * (1 + (a - 1) * p["k_a"])
        y = np.zeros_like(v)
        for h in range(n_heads):
            c = slice(h * C, (h + 1) * C)
            direction = kappa[c] / np.linalg.norm(kappa[c])
            transition = np.diag(w[c]) - np.outer(direction, a[c] * direction)
            state[h] = state[h] @ transition + np.outer(v[c], k[c])
            y[c] = layer_norm(state[h] @ r[c], p["g_norm.weight"][c], p["g_norm.bias"][c], eps)
            y[c] += (r[c] * k[c] * p["r_k"][c]).sum() * v[c]
        outputs.append(p["o_proj.weight"] @ (g * y))
        before = x
    return outputs, values


def channel_mixing(xs, p):
    """Outputs of one sequence."""
    before, outputs = np.zeros_like(xs[0]), []
    for x in xs:
        hidden = p["up_proj.weight"] @ (x + (before - x) * p["x_k"])
        outputs.append(p["down_proj.weight"] @ np.maximum(hidden, 0) ** 2)
        before = x
    return outputs


def logits(tokens, p, n_layers, n_heads, eps=1e-5):
    """Of a model whose layers are time mixing and channel mixing in turn."""
    norm = lambda x, name: layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)
    xs = [norm(p["embedding.embed_tokens.weight"][t], "embedding_norm") for t in tokens]
    first_values = None
    for i in range(n_layers):
        of_mixer = {n.removeprefix(f"layers.{i}.self_attn."): a for n, a in p.items()}
        inputs = [norm(x, f"layers.{i}.input_layernorm") for x in xs]
        if i % 2 == 0:
            mixed, values = time_mixing(inputs, of_mixer, n_heads, first_values)
            first_values = values if first_values is None else first_values
        else:
            mixed = channel_mixing(inputs, of_mixer)
        xs = [x + y for x, y in zip(xs, mixed, strict=True)]
    return np.stack([p["embedding.lm_head.weight"] @ norm(x, "norm") for x in xs])


def dplr(r, w, k, v, a, b, state):
    """``S <- (diag(w) + b a^T) S + k v^T``, ``y = S^T r``, of one head: ``(L, C)`` each, state ``(C, M)``."""
    outputs = []
    for t in range(len(r)):
        state = (np.diag(w[t]) + np.outer(b[t], a[t])) @ state + np.outer(k[t], v[t])
        outputs.append(state.T @ r[t])
    return np.stack(outputs), state
