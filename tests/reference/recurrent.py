"""Linear memories in float64 NumPy, one sequence, one head and one token at a time, written from the papers.

A memory S of a head is a matrix, keys by values. Mixers take parameters by lmxexp's names, without the mixer's own
prefix, and an input ``(T, D)``.
"""

import math

import numpy as np

from tests.reference.transformer import linear, rms_norm, rotate, silu


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def delta_rule(q, k, v, beta, decay, S):
    """``(T, C)``, ``(T, C)``, ``(T, M)``, ``(T,)``, decays ``(T, C)``: outputs ``(T, M)`` and the memory after them."""
    y = np.zeros_like(v)
    for t in range(len(k)):
        S = decay[t][:, None] * S
        held = k[t] @ S
        S = S + beta[t] * np.outer(k[t], v[t] - held)
        y[t] = q[t] @ S
    return y, S


def additive_memory(q, k, v, decay, S):
    """The same of linear attention."""
    y = np.zeros_like(v)
    for t in range(len(k)):
        S = decay[t][:, None] * S + np.outer(k[t], v[t])
        y[t] = q[t] @ S
    return y, S


def convolution(x, weight):
    """Causal, each channel by itself: ``(T, channels)``, ``(channels, width)``."""
    width = weight.shape[-1]
    y = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(width):
            if t - i >= 0:
                y[t] += weight[:, width - 1 - i] * x[t - i]
    return y


def heads(x, n_heads):
    return x.reshape(len(x), n_heads, -1)


def delta_net(p, x, n_heads, eps=1e-5):
    """DeltaNet; with a forget gate and an output gate among the parameters, Kimi Delta Attention."""
    qkv = np.concatenate([linear(x, p, f"{n}_proj") for n in "qkv"], axis=1)
    q, k, v = (heads(a, n_heads) for a in np.split(silu(convolution(qkv, p["conv1d.weight"])), 3, axis=1))
    beta = sigmoid(linear(x, p, "b_proj"))
    C = q.shape[-1]
    decay = np.ones(q.shape)
    if "decay.A_log" in p:
        step = linear(linear(x, p, "decay.f_a_proj"), p, "decay.f_b_proj") + p["decay.dt_bias"]
        decay = np.exp(-np.exp(p["decay.A_log"])[:, None] * softplus(heads(step, n_heads)))
    y = np.zeros(v.shape)
    for h in range(n_heads):
        read, _ = delta_rule(
            unit(q[:, h]) / math.sqrt(C), unit(k[:, h]), v[:, h], beta[:, h], decay[:, h], np.zeros((C, C))
        )
        y[:, h] = rms_norm(read, p["o_norm.weight"], eps)
    y = y.reshape(len(x), -1)
    if "gate.g_a_proj.weight" in p:
        y = y * sigmoid(linear(linear(x, p, "gate.g_a_proj"), p, "gate.g_b_proj"))
    return linear(y, p, "o_proj")


def gated_deltanet(p, x, n_heads, n_key_heads, C, M, eps=1e-6):
    """Gated DeltaNet with the weights' layout of Qwen3-Next: rows of one key head after those of another."""
    shared = n_heads // n_key_heads
    rows = 2 * C + 2 * shared * M
    q, k, v, z, b, a = [], [], [], [], [], []
    qkvz, ba = linear(x, p, "in_proj_qkvz"), linear(x, p, "in_proj_ba")
    for g in range(n_key_heads):
        part = qkvz[:, g * rows : (g + 1) * rows]
        q.append(part[:, :C])
        k.append(part[:, C : 2 * C])
        v.append(part[:, 2 * C : 2 * C + shared * M])
        z.append(part[:, 2 * C + shared * M :])
        part = ba[:, 2 * g * shared : 2 * (g + 1) * shared]
        b.append(part[:, :shared])
        a.append(part[:, shared:])
    b, a = np.concatenate(b, axis=1), np.concatenate(a, axis=1)
    z = heads(np.concatenate(z, axis=1), n_heads)
    mixed = silu(convolution(np.concatenate(q + k + v, axis=1), p["conv1d.weight"]))
    keys = n_key_heads * C
    q, k = heads(mixed[:, :keys], n_key_heads), heads(mixed[:, keys : 2 * keys], n_key_heads)
    v = heads(mixed[:, 2 * keys :], n_heads)
    decay = np.exp(-np.exp(p["A_log"]) * softplus(a + p["dt_bias"]))
    y = np.zeros(v.shape)
    for h in range(n_heads):
        g = h // shared
        ones = np.ones(C)
        read, _ = delta_rule(
            unit(q[:, g]) / math.sqrt(C), unit(k[:, g]), v[:, h], sigmoid(b[:, h]), decay[:, h, None] * ones,
            np.zeros((C, M)),
        )  # fmt: skip
        y[:, h] = rms_norm(read, p["norm.weight"], eps) * silu(z[:, h])
    return linear(y.reshape(len(x), -1), p, "out_proj")


def linear_attention(p, x, n_heads, features, eps=1e-6):
    """Each query's weighted mean of the values up to it."""
    q, k, v = (heads(linear(x, p, f"{n}_proj"), n_heads) for n in "qkv")
    y = np.zeros(v.shape)
    for h in range(n_heads):
        for t in range(len(x)):
            weights = np.array([features(q[t, h]) @ features(k[s, h]) for s in range(t + 1)]) / math.sqrt(q.shape[-1])
            y[t, h] = weights @ v[: t + 1, h] / (weights.sum() + eps)
    return linear(y.reshape(len(x), -1), p, "o_proj")


def retention(p, x, n_heads, shortest=5.0, eps=1e-5):
    """By the parallel form, each pair of positions at a time."""
    q, k, v = (heads(linear(x, p, f"{n}_proj"), n_heads) for n in "qkv")
    y = np.zeros(v.shape)
    for h in range(n_heads):
        gamma = 1 - 2 ** -(shortest + h)
        for t in range(len(x)):
            for s in range(t + 1):
                score = rotate(q[t, h], t) @ rotate(k[s, h], s) / math.sqrt(q.shape[-1])
                y[t, h] += gamma ** (t - s) * score * v[s, h]
    y = rms_norm(y, p["o_norm.weight"], eps).reshape(len(x), -1)
    return linear(y * silu(linear(x, p, "gate.g_proj")), p, "o_proj")


def gated_linear_attention(p, x, n_heads, temperature=16.0, eps=1e-5):
    q, k, v = (heads(linear(x, p, f"{n}_proj"), n_heads) for n in "qkv")
    decay = heads(sigmoid(linear(linear(x, p, "decay.a_proj"), p, "decay.b_proj")) ** (1 / temperature), n_heads)
    y = np.zeros(v.shape)
    C, M = q.shape[-1], v.shape[-1]
    for h in range(n_heads):
        y[:, h], _ = additive_memory(q[:, h] / math.sqrt(C), k[:, h], v[:, h], decay[:, h], np.zeros((C, M)))
    y = rms_norm(y, p["o_norm.weight"], eps).reshape(len(x), -1)
    return linear(y * silu(linear(x, p, "gate.g_proj")), p, "o_proj")
