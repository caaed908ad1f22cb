"""How fast a linear memory forgets: what fills the slot ``decay`` of linear attention and the delta rule.

Each is made by ``factory(d_model=, n_heads=, head_dim=)``, head_dim being the width of a head's keys, and maps the
mixer's input ``(B, L, D)`` to logarithms of decays, fp32: ``(B, H, L)`` one a head, ``(B, H, L, C)`` one a channel.
``per_channel`` says which.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.attention.step_size import log_spaced_steps


class FixedDecay:
    """Each head forgets at a pace of its own that no gradient moves: ``1 - 2^-(5 + h)`` a position.

    Args:
        d_model: not used.
        n_heads: H.
        head_dim: not used.
        shortest: the first head's exponent, 5 in the paper: it remembers about ``2^shortest`` positions.

    Source: Sun et al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models", eq. 8.
    """

    per_channel = False

    def __init__(self, d_model: int, n_heads: int, head_dim: int, shortest: float = 5.0):
        self.shortest = shortest
        self.log_decay = [math.log1p(-(2.0 ** -(shortest + h))) for h in range(n_heads)]

    def __call__(self, x: mx.array) -> mx.array:
        n_heads = len(self.log_decay)
        return mx.broadcast_to(mx.array(self.log_decay)[None, :, None], (1, n_heads, x.shape[1]))


class LowRankDecay(nn.Module):
    """A decay per channel of the keys that the input sets: ``sigmoid(B A x + b) ** (1 / temperature)``.

    Args:
        d_model: D.
        n_heads: H.
        head_dim: C, the width of a head's keys.
        rank: rows of A.
        temperature: above one, it keeps decays near one.

    Source: Yang et al. 2024, "Gated Linear Attention Transformers with Hardware-Efficient Training", section 4.4.
    """

    per_channel = True

    def __init__(self, d_model: int, n_heads: int, head_dim: int, rank: int = 16, temperature: float = 16.0):
        super().__init__()
        self.n_heads, self.head_dim, self.temperature = n_heads, head_dim, temperature
        self.a_proj = nn.Linear(d_model, rank, bias=False)
        self.b_proj = nn.Linear(rank, n_heads * head_dim, bias=True)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, _ = x.shape
        logits = self.b_proj(self.a_proj(x)).astype(mx.float32)
        decay = -nn.softplus(-logits) / self.temperature
        return decay.reshape(B, L, self.n_heads, self.head_dim).transpose(0, 2, 1, 3)


class ForgetGate(nn.Module):
    """A decay per channel of the keys: ``exp(-exp(A_log) softplus(f_b_proj(f_a_proj(x)) + dt_bias))``.

    ``A_log`` is one a head, ``dt_bias`` one a channel.

    Args:
        d_model: D.
        n_heads: H.
        head_dim: C, the width of a head's keys.
        rank: of the projection; None: ``head_dim``.

    Source: Kimi Team 2025, "Kimi Linear: An Expressive, Efficient Attention Architecture", section 4.
    """

    per_channel = True

    def __init__(self, d_model: int, n_heads: int, head_dim: int, rank: int | None = None):
        super().__init__()
        rank = head_dim if rank is None else rank
        self.n_heads, self.head_dim, self.rank = n_heads, head_dim, rank
        self.f_a_proj = nn.Linear(d_model, rank, bias=False)
        self.f_b_proj = nn.Linear(rank, n_heads * head_dim, bias=False)
        self.A_log = mx.log(mx.linspace(1.0, 16.0, n_heads))
        self.dt_bias = mx.tile(log_spaced_steps(head_dim), n_heads)

    def __call__(self, x: mx.array) -> mx.array:
        B, L, _ = x.shape
        step = self.f_b_proj(self.f_a_proj(x)).astype(mx.float32) + self.dt_bias.astype(mx.float32)
        step = nn.softplus(step).reshape(B, L, self.n_heads, self.head_dim).transpose(0, 2, 1, 3)
        return -mx.exp(self.A_log.astype(mx.float32))[:, None, None] * step
