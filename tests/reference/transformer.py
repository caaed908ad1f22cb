"""A decoder-only transformer in float64 NumPy, written from the papers and sharing nothing with lmxexp.

One sequence at a time, one head at a time, one query at a time: slow and hard to get wrong.
"""

import math

import numpy as np

Params = dict[str, np.ndarray]


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def rotate(vector, position, theta=10000.0):
    """RoPE on one head's vector: the pair (i, i + C/2) as a complex number, turned."""
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * theta ** (-np.arange(half) / half))
    return np.concatenate([turned.real, turned.imag])


def alibi_slopes(n_heads):
    """The published rule for powers of two, and for other counts the authors' interleaving."""
    if math.log2(n_heads).is_integer():
        return [2 ** (-8 * (i + 1) / n_heads) for i in range(n_heads)]
    lower = 2 ** int(math.log2(n_heads))
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[0::2][: n_heads - lower]


def linear(x, p: Params, name):
    y = x @ p[f"{name}.weight"].T
    return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


class Transformer:
    """Logits of one sequence.

    Args:
        p: parameters by lmxexp's names, float64.
        position: rope, learned, sinusoidal, alibi or none.
        block: pre_norm, post_norm, sandwich or parallel.
        window: positions a query sees; None: all.
        chunk: positions that see each other; None: all.
        norm_offset, qk_norm_offset: added to the scales of RMS norms.
        unscaled, unscaled_qk: whether RMS norms have no scale.
        score_cap, logit_cap: of the tanh soft caps; None: none.
    """

    def __init__(
        self, p: Params, *, n_layers, n_heads, n_kv_heads, position="rope", block="pre_norm", activation="silu",
        window=None, score_cap=None, logit_cap=None, norm_eps=1e-5, qk_norm_eps=1e-6,
        chunk=None, norm_offset=0.0, qk_norm_offset=0.0, unscaled=False, unscaled_qk=False,
    ):  # fmt: skip
        self.p = p
        self.n_layers, self.n_heads, self.n_kv_heads = n_layers, n_heads, n_kv_heads
        self.position, self.block, self.activation = position, block, ACTIVATIONS[activation]
        self.window, self.score_cap, self.logit_cap = window, score_cap, logit_cap
        self.norm_eps, self.qk_norm_eps, self.chunk = norm_eps, qk_norm_eps, chunk
        self.norm_offset, self.qk_norm_offset = norm_offset, qk_norm_offset
        self.unscaled, self.unscaled_qk = unscaled, unscaled_qk

    def norm(self, x, name):
        """What the parameters say: dynamic tanh by its alpha, layer norm by its bias (the reference is given biases for
        it), else RMS norm; none if absent."""
        p = self.p
        if f"{name}.alpha" in p:
            return p[f"{name}.weight"] * np.tanh(p[f"{name}.alpha"] * x) + p[f"{name}.bias"]
        if f"{name}.bias" in p:
            return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], self.norm_eps)
        if f"{name}.weight" in p:
            return rms_norm(x, p[f"{name}.weight"] + self.norm_offset, self.norm_eps)
        return rms_norm(x, 1.0, self.norm_eps) if self.unscaled else x

    def qk_norm(self, x, name):
        """Of ``(T, heads, C)``: over each head, or over all of them by a norm that is one level deeper."""
        p, eps = self.p, self.qk_norm_eps
        if f"{name}.norm.weight" in p:
            return rms_norm(x.reshape(len(x), -1), p[f"{name}.norm.weight"], eps).reshape(x.shape)
        if f"{name}.bias" in p:
            return layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], eps)
        if f"{name}.weight" in p:
            return rms_norm(x, p[f"{name}.weight"] + self.qk_norm_offset, eps)
        return rms_norm(x, 1.0, eps) if self.unscaled_qk else x

    def attention(self, x, name):
        p, T = self.p, len(x)
        C = p[f"{name}.q_proj.weight"].shape[0] // self.n_heads
        q = linear(x, p, f"{name}.q_proj").reshape(T, self.n_heads, C)
        k = linear(x, p, f"{name}.k_proj").reshape(T, self.n_kv_heads, C)
        v = linear(x, p, f"{name}.v_proj").reshape(T, self.n_kv_heads, C)
        q, k = (self.qk_norm(a, f"{name}.{n}") for a, n in ((q, "q_norm"), (k, "k_norm")))
        if self.first_values is None:
            self.first_values = v
        elif f"{name}.value_residual.own" in p:
            v = p[f"{name}.value_residual.own"] * v + p[f"{name}.value_residual.first"] * self.first_values
        y = np.zeros((T, self.n_heads, C))
        for h in range(self.n_heads):
            g = h * self.n_kv_heads // self.n_heads
            for t in range(T):
                first = 0 if self.window is None else max(0, t - self.window + 1)
                first = first if self.chunk is None else t // self.chunk * self.chunk
                scores = []
                for s in range(first, t + 1):
                    a, b = q[t, h], k[s, g]
                    if self.position == "rope":
                        a, b = rotate(a, t), rotate(b, s)
                    score = a @ b / math.sqrt(C)
                    if self.score_cap is not None:
                        score = self.score_cap * math.tanh(score / self.score_cap)
                    if self.position == "alibi":
                        score -= alibi_slopes(self.n_heads)[h] * (t - s)
                    scores.append(score)
                weights = np.exp(np.array(scores) - max(scores))
                total = weights.sum()
                if f"{name}.sinks.weight" in p:
                    total += np.exp(p[f"{name}.sinks.weight"][h] - max(scores))
                y[t, h] = weights / total @ v[first : t + 1, g]
        if f"{name}.gate.g_proj.weight" in p:
            y = y.reshape(T, -1) / (1 + np.exp(-linear(x, p, f"{name}.gate.g_proj")))
        return linear(y.reshape(T, -1), p, f"{name}.o_proj")

    def ffn(self, x, name):
        up = linear(x, self.p, f"{name}.up_proj")
        if f"{name}.gate_proj.weight" in self.p:
            hidden = self.activation(linear(x, self.p, f"{name}.gate_proj")) * up
        else:
            hidden = self.activation(up)
        return linear(hidden, self.p, f"{name}.down_proj")

    def layer(self, x, n):
        attention = lambda h: self.attention(h, f"{n}.self_attn")
        ffn = lambda h: self.ffn(h, f"{n}.mlp")
        norm = lambda h, name: self.norm(h, f"{n}.{name}")
        if self.block == "pre_norm":
            x = x + attention(norm(x, "input_layernorm"))
            return x + ffn(norm(x, "post_attention_layernorm"))
        if self.block == "post_norm":
            x = x + norm(attention(x), "post_attention_layernorm")
            return x + norm(ffn(x), "post_feedforward_layernorm")
        if self.block == "sandwich":
            x = x + norm(attention(norm(x, "input_layernorm")), "post_attention_layernorm")
            return x + norm(ffn(norm(x, "pre_feedforward_layernorm")), "post_feedforward_layernorm")
        assert self.block == "parallel"
        h = norm(x, "input_layernorm")
        return x + attention(h) + ffn(h)

    def __call__(self, tokens):
        p, T = self.p, len(tokens)
        x = p["embedding.embed_tokens.weight"][tokens]
        D = x.shape[1]
        if self.position == "learned":
            x = x + p["position_embedding.weight"][:T]
        if self.position == "sinusoidal":
            angle = np.arange(T)[:, None] / 10000 ** (np.arange(D // 2) / (D // 2))
            x = x + 0.02 * math.sqrt(2) * np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
        x = self.norm(x, "embedding_norm") if "embedding_norm.weight" in p else x
        self.first_values = None
        for i in range(self.n_layers):
            x = self.layer(x, f"layers.{i}")
        h = self.norm(x, "norm")
        head = p.get("embedding.lm_head.weight", p["embedding.embed_tokens.weight"])
        logits = h @ head.T
        return logits if self.logit_cap is None else self.logit_cap * np.tanh(logits / self.logit_cap)
