"""Rotary scalings, latent attention and differential attention in float64 NumPy, written from the papers.

One sequence, one head, one query, one key at a time.
"""

import math

import numpy as np

from tests.reference.transformer import alibi_slopes, linear, rms_norm


def frequencies(dims, theta, scaling=None, **knobs):
    """Radians a position of each pair."""
    plain = [1 / theta ** (2 * i / dims) for i in range(dims // 2)]
    if scaling is None:
        return plain
    if scaling == "ntk":
        return [1 / (theta * knobs["factor"] ** (dims / (dims - 2))) ** (2 * i / dims) for i in range(dims // 2)]
    blend = {"linear": lambda i, f: 0.0, "llama3": _llama3, "yarn": _yarn}[scaling]
    kept = [blend(i, f, **knobs, dims=dims, theta=theta) if scaling != "linear" else 0.0 for i, f in enumerate(plain)]
    return [f * w + f / knobs["factor"] * (1 - w) for f, w in zip(plain, kept, strict=True)]


def _llama3(i, f, *, factor, original_len, low_freq_factor=1.0, high_freq_factor=4.0, dims, theta):
    """The share of a pair's own frequency, by its wavelength."""
    wavelength = 2 * math.pi / f
    if wavelength > original_len / low_freq_factor:
        return 0.0
    if wavelength < original_len / high_freq_factor:
        return 1.0
    return (original_len / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)


def _yarn(i, f, *, factor, original_len, beta_fast=32.0, beta_slow=1.0, truncate=True, dims, theta):
    """The same, by where the pair stands between those that turn beta_fast and beta_slow times."""

    def place(turns):
        # original_len * theta^(-2 i / dims) / (2 pi) = turns, solved for i
        return dims / 2 * math.log(original_len / (2 * math.pi * turns), theta)

    begin, end = place(beta_fast), place(beta_slow)
    if truncate:
        begin, end = math.floor(begin), math.ceil(end)
    begin, end = max(begin, 0), min(end, dims - 1)
    if begin == end:
        return 0.0 if i > begin else 1.0
    return 1 - min(1, max(0, (i - begin) / (end - begin)))


def turn(vector, position, freqs, *, interleaved=False, magnitude=1.0):
    """Turns as many elements as there are frequencies for, the first ones."""
    vector = np.array(vector, dtype=np.float64)
    n = len(freqs)
    for i, f in enumerate(freqs):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + n)
        z = complex(vector[a], vector[b]) * np.exp(1j * position * f) * magnitude
        vector[a], vector[b] = z.real, z.imag
    return vector


def softmax(scores):
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


def attention(x, p, *, n_heads, n_kv_heads, on_query, on_key):
    """Grouped-query attention; ``on_query(vector, position)`` and ``on_key`` are what the position does."""
    T = len(x)
    q = linear(x, p, "q_proj").reshape(T, n_heads, -1)
    k = linear(x, p, "k_proj").reshape(T, n_kv_heads, -1)
    v = linear(x, p, "v_proj").reshape(T, n_kv_heads, -1)
    y = np.zeros_like(q)
    for h in range(n_heads):
        g = h * n_kv_heads // n_heads
        for t in range(T):
            scores = [on_query(q[t, h], t) @ on_key(k[s, g], s) / math.sqrt(q.shape[2]) for s in range(t + 1)]
            y[t, h] = softmax(scores) @ v[: t + 1, g]
    return linear(y.reshape(T, -1), p, "o_proj")


def latent_attention(
    x, p, *, n_heads, head_dim, rope_dim, v_dim, kv_rank, position="rope", freqs=(), interleaved=False, magnitude=1.0,
    score_scale=1.0, window=None, cap=None, eps=1e-6,
):  # fmt: skip
    """DeepSeek-V2, eq. 9 to 19, with every key and value spelled out."""
    T = len(x)
    queries = linear(x, p, "q_proj") if "q_proj.weight" in p else linear(
        rms_norm(linear(x, p, "q_a_proj"), p["q_a_layernorm.weight"], eps), p, "q_b_proj"
    )  # fmt: skip
    queries = queries.reshape(T, n_heads, head_dim + rope_dim)
    compressed = linear(x, p, "kv_a_proj_with_mqa")
    latents = rms_norm(compressed[:, :kv_rank], p["kv_a_layernorm.weight"], eps)
    rope = lambda vector, t: turn(vector, t, freqs, interleaved=interleaved, magnitude=magnitude)
    y = np.zeros((T, n_heads, v_dim))
    for h in range(n_heads):
        rows = p["kv_b_proj.weight"][h * (head_dim + v_dim) : (h + 1) * (head_dim + v_dim)]
        for t in range(T):
            first = 0 if window is None else max(0, t - window + 1)
            q, q_rope = queries[t, h, :head_dim], queries[t, h, head_dim:]
            scores = []
            for s in range(first, t + 1):
                key, key_rope = rows[:head_dim] @ latents[s], compressed[s, kv_rank:]
                with_position = rope(q_rope, t) @ rope(key_rope, s) if position == "rope" else q_rope @ key_rope
                score = (q @ key + with_position) / math.sqrt(head_dim + rope_dim) * score_scale
                if cap is not None:
                    score = cap * math.tanh(score / cap)
                if position == "alibi":
                    score -= alibi_slopes(n_heads)[h] * (t - s)
                scores.append(score)
            y[t, h] = softmax(scores) @ [rows[head_dim:] @ latents[s] for s in range(first, t + 1)]
    return linear(y.reshape(T, -1), p, "o_proj")


def differential_attention(
    x, p, *, n_heads, n_kv_heads, layer_idx, position="rope", theta=10000.0, window=None, cap=None, eps=1e-5,
    qk_eps=None, gated=False, sinks=False,
):  # fmt: skip
    """Ye et al., eq. 1 to 3: pair h is the single heads h and h + n_heads / 2, with one wide value."""
    T = len(x)
    q = linear(x, p, "q_proj").reshape(T, n_heads, -1)
    k = linear(x, p, "k_proj").reshape(T, n_kv_heads, -1)
    v = linear(x, p, "v_proj").reshape(T, n_kv_heads, -1)
    C = q.shape[2]
    if qk_eps is not None:
        q, k = rms_norm(q, p["q_norm.weight"], qk_eps), rms_norm(k, p["k_norm.weight"], qk_eps)
    initial = 0.8 - 0.6 * math.exp(-0.3 * layer_idx)
    factor = initial
    factor += math.exp(sum(p["lambda_q1"] * p["lambda_k1"])) - math.exp(sum(p["lambda_q2"] * p["lambda_k2"]))
    freqs = frequencies(C, theta)
    group = n_heads // n_kv_heads

    def found(h, t):
        """What single head h takes at t from the wide values of its pair."""
        g = h // group
        first = 0 if window is None else max(0, t - window + 1)
        scores = []
        for s in range(first, t + 1):
            a, b = q[t, h], k[s, g]
            if position == "rope":
                a, b = turn(a, t, freqs), turn(b, s, freqs)
            score = a @ b / math.sqrt(C)
            if cap is not None:
                score = cap * math.tanh(score / cap)
            if position == "alibi":
                score -= alibi_slopes(n_heads)[h] * (t - s)
            scores.append(score)
        weights = softmax([*scores, p["sinks.weight"][h]])[:-1] if sinks else softmax(scores)
        pair_value = g % (n_kv_heads // 2)
        wide = np.concatenate([v[:, pair_value], v[:, pair_value + n_kv_heads // 2]], axis=1)
        return weights @ wide[first : t + 1]

    y = np.zeros((T, n_heads // 2, 2 * C))
    for h in range(n_heads // 2):
        for t in range(T):
            y[t, h] = found(h, t) - factor * found(h + n_heads // 2, t)
    y = (rms_norm(y, np.ones(2 * C), eps) * (1 - initial)).reshape(T, -1)
    if gated:
        y = y / (1 + np.exp(-linear(x, p, "gate.g_proj")))
    return linear(y, p, "o_proj")
