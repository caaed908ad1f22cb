"""State-space mixers in float64 NumPy, position by position, written from the papers and sharing nothing with lmxexp.

One sequence at a time. ``p`` holds parameters by lmxexp's names, ``name`` is the mixer's own.
"""

import numpy as np

from tests.reference.transformer import Transformer, linear, rms_norm, silu


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def ssd(x, log_decay, b, c, state=None):
    """Mamba-2's recurrence: x (L, H, P), log_decay (L, H), b and c (L, G, N), state (H, P, N); y and the last state."""
    L, H, P = x.shape
    G, N = b.shape[1:]
    S = np.zeros((H, P, N)) if state is None else state.copy()
    y = np.zeros_like(x)
    for t in range(L):
        for h in range(H):
            group = h * G // H
            S[h] = np.exp(log_decay[t, h]) * S[h] + np.outer(x[t, h], b[t, group])
            y[t, h] = S[h] @ c[t, group]
    return y, S


def selective_scan(x, dt, a, b, c, state=None):
    """Mamba's recurrence: x and dt (L, D), a (D, N), b and c (L, N), state (D, N); y and the last state."""
    L, D = x.shape
    S = np.zeros_like(a) if state is None else state.copy()
    y = np.zeros_like(x)
    for t in range(L):
        for d in range(D):
            S[d] = np.exp(dt[t, d] * a[d]) * S[d] + dt[t, d] * x[t, d] * b[t]
            y[t, d] = c[t] @ S[d]
    return y, S


def conv(x, p, name):
    """The last tap is for the position itself; before the first position there are zeros."""
    weight = p[f"{name}.weight"]
    W = weight.shape[1]
    y = np.zeros_like(x)
    for t in range(len(x)):
        for i in range(W):
            if t - i >= 0:
                y[t] += weight[:, W - 1 - i] * x[t - i]
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def mamba2(x, p, name, n_groups=1, normed=True, eps=1e-5, dt_limit=(0, np.inf)):
    L = len(x)
    H = len(p[f"{name}.A_log"])
    d_inner = p[f"{name}.out_proj.weight"].shape[1]
    N = (p[f"{name}.conv1d.weight"].shape[0] - d_inner) // (2 * n_groups)
    projected = linear(x, p, f"{name}.in_proj")
    z, xbc, dt = projected[:, :d_inner], projected[:, d_inner:-H], projected[:, -H:]
    xbc = silu(conv(xbc, p, f"{name}.conv1d"))
    u = xbc[:, :d_inner].reshape(L, H, d_inner // H)
    b = xbc[:, d_inner : d_inner + n_groups * N].reshape(L, n_groups, N)
    c = xbc[:, d_inner + n_groups * N :].reshape(L, n_groups, N)
    dt = np.clip(softplus(dt + p[f"{name}.dt_bias"]), *dt_limit)
    y, _ = ssd(dt[:, :, None] * u, -dt * np.exp(p[f"{name}.A_log"]), b, c)
    y = (y + p[f"{name}.D"][:, None] * u).reshape(L, d_inner) * silu(z)
    if normed:
        groups = np.split(y, n_groups, axis=1)
        y = np.concatenate([rms_norm(g, 1.0, eps) for g in groups], axis=1) * p[f"{name}.norm.weight"]
    return linear(y, p, f"{name}.out_proj")


def mamba1(x, p, name, normed=False, eps=1e-5):
    A = -np.exp(p[f"{name}.A_log"])
    d_inner, N = A.shape
    projected = linear(x, p, f"{name}.in_proj")
    u, z = projected[:, :d_inner], projected[:, d_inner:]
    u = silu(conv(u, p, f"{name}.conv1d"))
    dt_b_c = linear(u, p, f"{name}.x_proj")
    rank = dt_b_c.shape[1] - 2 * N
    dt, b, c = dt_b_c[:, :rank], dt_b_c[:, rank : rank + N], dt_b_c[:, rank + N :]
    if normed:
        dt, b, c = (rms_norm(a, p[f"{name}.{n}_layernorm.weight"], eps) for a, n in ((dt, "dt"), (b, "b"), (c, "c")))
    dt = softplus(linear(dt, p, f"{name}.dt_proj") + p[f"{name}.dt_bias"])
    y, _ = selective_scan(u, dt, A, b, c)
    return linear((y + p[f"{name}.D"] * u) * silu(z), p, f"{name}.out_proj")


def short_conv(x, p, name):
    b, c, u = np.split(linear(x, p, f"{name}.in_proj"), 3, axis=1)
    return linear(c * conv(b * u, p, f"{name}.conv"), p, f"{name}.out_proj")


class StateSpaceModel(Transformer):
    """A transformer with another mixer.

    Args:
        mixer: ``f(x, p, name)``.
        beside: whether attention is added to it, under the names ``first`` and ``second``.
    """

    def __init__(self, p, *, mixer, beside=False, **sizes):
        super().__init__(p, **sizes)
        self.mixer, self.beside = mixer, beside

    def attention(self, x, name):
        if not self.beside:
            return self.mixer(x, self.p, name)
        return super().attention(x, f"{name}.first") + self.mixer(x, self.p, f"{name}.second")
