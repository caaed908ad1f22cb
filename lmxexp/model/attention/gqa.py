"""Softmax attention over all positions: multi-head, grouped-query and multi-query."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.cache import KVCache
from lmxexp.ops.attend import attend, causal_mask, segment_mask


class GroupedQueryAttention(nn.Module):
    """Softmax attention in which ``n_heads`` queries share ``n_kv_heads`` keys and values.

    ``n_kv_heads = n_heads`` is multi-head attention, ``n_kv_heads = 1`` multi-query attention.

    Args:
        d_model: width of the input and output.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides ``n_heads``.
        layer_idx: place in the stack, counted from 0.
        head_dim: width of a head; None: ``d_model / n_heads``.
        position: factory of a `Position`; None: no positions.
        qk_norm: factory of a norm over ``head_dim``, one for queries and one for keys; a factory that returns None
            leaves the slot empty.
        softcap: factory of a function on the scores; likewise.
        bias: whether the four projections have biases.
        dropout: probability of dropping an attention weight in training.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``2 n_kv_heads head_dim`` elements a position. Mixing: ``4 n_heads head_dim`` FLOPs a visible position.

    Raises:
        ConfigError: sizes that do not divide.

    Source: Ainslie et al. 2023, "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints";
        Shazeer 2019, "Fast Transformer Decoding: One Write-Head is All You Need"; Vaswani et al. 2017.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        layer_idx: int = 0,
        head_dim: int | None = None,
        position: Factory | None = None,
        qk_norm: Factory | None = None,
        softcap: Factory | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ConfigError(f"model.n_heads={n_heads} must be a multiple of model.n_kv_heads={n_kv_heads}")
        if head_dim is None:
            if d_model % n_heads:
                raise ConfigError(
                    f"model.d_model={d_model} must be a multiple of model.n_heads={n_heads}, or set model.head_dim"
                )
            head_dim = d_model // n_heads
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.scale = head_dim**-0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.position = position(head_dim=head_dim, n_heads=n_heads) if position else None
        self.q_norm = qk_norm(head_dim) if qk_norm else None
        self.k_norm = qk_norm(head_dim) if qk_norm else None
        self.softcap = softcap() if softcap else None

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        B, L, _ = x.shape
        q = self.q_proj(x).reshape(B, L, self.n_heads, self.head_dim)
        k = self.k_proj(x).reshape(B, L, self.n_kv_heads, self.head_dim)
        v = self.v_proj(x).reshape(B, L, self.n_kv_heads, self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
        if self.position is not None:
            q, k = self.position.rotate(q, k, 0 if cache is None else cache.offset)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        S = k.shape[2]
        y = attend(
            q,
            k,
            v,
            scale=self.scale,
            mask=self._mask(L, S, segment_ids),
            bias=self.position.bias(L, S) if self.position is not None else None,
            softcap=self.softcap,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.o_proj(y.transpose(0, 2, 1, 3).reshape(B, L, -1))

    def _mask(self, n_q: int, n_k: int, segment_ids: mx.array | None) -> mx.array | None:
        """What the last ``n_q`` of ``n_k`` positions may see; None: all that is not the future."""
        if segment_ids is None:
            return None
        if n_q != n_k:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        return causal_mask(n_q, n_k) & segment_mask(segment_ids)

    def make_cache(self) -> KVCache:
        return KVCache()

    def state_size(self, seq_len: int) -> int:
        return 2 * self.n_kv_heads * self.head_dim * seq_len

    def mixing_flops(self, seq_len: int) -> int:
        # Scores and weighted sum, over the (seq_len + 1) / 2 positions that a position sees on average.
        return 2 * self.n_heads * self.head_dim * (seq_len + 1)
