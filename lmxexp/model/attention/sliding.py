"""Softmax attention over the last few positions."""

import mlx.core as mx

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.gqa import GroupedQueryAttention
from lmxexp.model.cache import WindowCache
from lmxexp.ops.attend import causal_mask, segment_mask


class SlidingWindowAttention(GroupedQueryAttention):
    """Grouped-query attention in which a position sees the last ``window`` positions, itself among them.

    Args:
        window: positions seen, at least 1.
        (the others): as in `GroupedQueryAttention`.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``2 n_kv_heads head_dim min(S, window)`` elements.

    Source: Beltagy et al. 2020, "Longformer", section 3.1; Jiang et al. 2023, "Mistral 7B". The window counts the
        position itself, as in Mistral's code.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        window: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        position: Factory | None = None,
        qk_norm: Factory | None = None,
        softcap: Factory | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__(
            d_model, n_heads, n_kv_heads, layer_idx, head_dim, position, qk_norm, softcap, bias=bias, dropout=dropout
        )
        if window < 1:
            raise ConfigError(f"model.attention.window={window} must be at least 1, the position itself")
        self.window = window

    def _mask(self, n_q: int, n_k: int, segment_ids: mx.array | None) -> mx.array | None:
        if segment_ids is None:
            # All keys within reach of the first query: the plain causal mask is the same, and its kernel faster.
            return None if n_k <= self.window else causal_mask(n_q, n_k, window=self.window)
        if n_q != n_k:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        return causal_mask(n_q, n_k, window=self.window) & segment_mask(segment_ids)

    def make_cache(self) -> WindowCache:
        return WindowCache(self.window)

    def state_size(self, seq_len: int) -> int:
        return super().state_size(min(seq_len, self.window))

    def mixing_flops(self, seq_len: int) -> int:
        w = min(self.window, seq_len)
        visible = w * (w + 1) // 2 + (seq_len - w) * w  # summed over the positions
        return 4 * self.n_heads * self.head_dim * visible // seq_len
