"""Gates on what a linear memory gave: what fills the slot ``gate`` of linear attention and the delta rule.

Each is made by ``factory(d_model=, n_heads=, head_dim=, bias=)``, head_dim being the width of a head's values, and maps
``(B, L, H C)``, normalised, and the mixer's input ``(B, L, D)`` to ``(B, L, H C)``.
"""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.recompute import cheap
from lmxexp.ops.exp import sigmoid, silu


class SiluGate(nn.Module):
    """``y * silu(g_proj(x))``.

    Args:
        d_model: D.
        n_heads: H.
        head_dim: C, the width of a head's values.
        bias: whether the projection has a bias.

    Source: Sun et al. 2023, "Retentive Network", eq. 8.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, bias: bool = False):
        super().__init__()
        self.g_proj = nn.Linear(d_model, n_heads * head_dim, bias=bias)

    def __call__(self, y: mx.array, x: mx.array) -> mx.array:
        return cheap(lambda y, gate: y * silu(gate), y, self.g_proj(x))


class LowRankGate(nn.Module):
    """``y * sigmoid(g_b_proj(g_a_proj(x)))``.

    Args:
        d_model: D.
        n_heads: H.
        head_dim: C, the width of a head's values.
        rank: width in between; None: ``head_dim``.
        bias: whether the second projection has a bias.

    Source: Kimi Team 2025, "Kimi Linear", section 4.
    """

    def __init__(self, d_model: int, n_heads: int, head_dim: int, rank: int | None = None, bias: bool = False):
        super().__init__()
        self.rank = head_dim if rank is None else rank
        self.g_a_proj = nn.Linear(d_model, self.rank, bias=False)
        self.g_b_proj = nn.Linear(self.rank, n_heads * head_dim, bias=bias)

    def __call__(self, y: mx.array, x: mx.array) -> mx.array:
        return cheap(lambda y, gate: y * sigmoid(gate), y, self.g_b_proj(self.g_a_proj(x)))
