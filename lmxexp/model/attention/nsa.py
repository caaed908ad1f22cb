"""Native sparse attention: compressed, selected and near positions, gated."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError, Factory
from lmxexp.model.attention.head_width import head_width
from lmxexp.model.attention.reach import Window
from lmxexp.model.cache import KVCache
from lmxexp.model.position.rotated import rotated
from lmxexp.ops.attend import attend, causal_mask
from lmxexp.ops.block_selection import attend_to_blocks, select_blocks
from lmxexp.ops.documents import document_starts
from lmxexp.ops.exp import sigmoid


class NativeSparseAttention(nn.Module):
    """Three attentions side by side, each head adding them up by sigmoid gates of its own.

    Compressed: to one key and one value for every ``block`` positions, made from them by a small network. A block is
    seen once it is complete, by its last position and all after it. Selected: to the positions of the ``n_selected``
    blocks to which compressed attention gave the most weight, summed over the queries that share a key; the
    first block of the sequence and the query's own are always among them. Near: to the last ``window``
    positions. Each has keys and values of its own.

    Positions (rotary and others) are applied to the selected and near attention; compressed keys know the
    order within their block by the network alone. (The paper leaves that open.)

    Args:
        d_model: width of the input and output.
        n_heads: query heads.
        n_kv_heads: key and value heads of each of the three; divides ``n_heads``.
        layer_idx: place in the stack, counted from 0; not used.
        head_dim: width of a head; None: ``d_model / n_heads``.
        position: factory of a `Position`; None: no positions.
        qk_norm: factory of a norm of queries and keys, see `GroupedQueryAttention`.
        block: positions of a block, both to compress and to select.
        n_selected: blocks selected, at least 2: the first and the query's own.
        window: positions of near attention, the query's own among them.
        bias: whether projections, gates and the compressing networks have biases.
        dropout: probability of dropping an attention weight in training.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``6 n_kv_heads head_dim`` elements a position, all kept; compressed keys and values are made anew at
        every call. Mixing: ``4 n_heads head_dim`` FLOPs a visible position and a visible block. That is what the
        design costs, and what is counted. What is computed here is more: the selection is a mask over all positions, so
        that time grows with the square of the length, and is longer than full attention's.

    Raises:
        ConfigError: sizes that do not divide, or a selection of fewer than two blocks.

    Source: Yuan et al. 2025, "Native Sparse Attention: Hardware-Aligned and Natively Trainable Sparse Attention",
        section 3. There, blocks to compress overlap (length 32, every 16) and are shorter than those to select (64), of
        which two near ones are always taken; here they are the same blocks. Of documents packed into one row
        (``segment_ids``), each has blocks of its own, counted from its beginning; which positions that are is known
        in computing only, so that ``block`` times as many are compressed and compared.
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
        block: int = 8,
        n_selected: int = 8,
        window: int = 64,
        bias: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        if n_heads < 1 or n_kv_heads < 1 or n_heads % n_kv_heads:
            raise ConfigError(f"model.n_heads={n_heads} must be a multiple of model.n_kv_heads={n_kv_heads}")
        head_dim = head_width(d_model, n_heads, head_dim)
        if block < 1:
            raise ConfigError(f"attention.block={block} must be at least 1")
        if n_selected < 2:
            raise ConfigError(
                f"attention.n_selected={n_selected} must be at least 2: the first block and the query's own"
            )
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.block, self.n_selected = block, n_selected
        self.near = Window(window)
        self.scale = head_dim**-0.5
        self.dropout = dropout
        # Keys and values of the three attentions, one behind the other.
        n_keys = 3 * n_kv_heads
        self.q_proj = nn.Linear(d_model, n_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(d_model, n_keys * head_dim, bias=bias)
        self.v_proj = nn.Linear(d_model, n_keys * head_dim, bias=bias)
        self.o_proj = nn.Linear(n_heads * head_dim, d_model, bias=bias)
        self.g_proj = nn.Linear(d_model, 3 * n_heads, bias=bias)
        self.compress_k = Compression(block, head_dim, bias)
        self.compress_v = Compression(block, head_dim, bias)
        self.position = position(head_dim=head_dim, n_heads=n_heads) if position else None
        self.q_norm = qk_norm(head_dim=head_dim, n_heads=n_heads) if qk_norm else None
        self.k_norm = qk_norm(head_dim=head_dim, n_heads=n_keys) if qk_norm else None

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        B, L, _ = x.shape
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        q, k, v = self._project(x)
        turned, K = q, self.n_kv_heads
        if self.position is not None:
            turned, late = rotated(self.position, q, k[:, K:], cache, segment_ids)
            k = mx.concatenate([k[:, :K], late], axis=1)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        keys, values = mx.split(k, 3, axis=1), mx.split(v, 3, axis=1)
        blocks = Blocks(self.block, k.shape[2]) if segment_ids is None else BlocksOfDocuments(self.block, segment_ids)
        compressed, importance = self._compressed(q, keys[0], values[0], blocks)
        selected = self._selected(turned, keys[1], values[1], importance, blocks)
        near = self._near(turned, keys[2], values[2], segment_ids)
        gates = sigmoid(self.g_proj(x)).reshape(B, L, self.n_heads, 3).swapaxes(1, 2)
        y = gates[..., 0:1] * compressed + gates[..., 1:2] * selected + gates[..., 2:3] * near
        return self.o_proj(y.swapaxes(1, 2).reshape(B, L, -1))

    def _project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """``(B, L, D)`` to queries ``(B, H, L, C)`` and keys and values ``(B, 3 K, L, C)``, before positions."""
        B, L, _ = x.shape
        q, k, v = (p(x).reshape(B, L, -1, self.head_dim) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)

    def _compressed(self, q: mx.array, k: mx.array, v: mx.array, blocks: Blocks) -> tuple[mx.array, mx.array]:
        """What the blocks' summaries say ``(B, H, L, C)``, and the weight of every block ``(B, K, L, N)``, 0 of one
        that is not complete."""
        (B, K, S, _), L = k.shape, q.shape[2]
        importance = mx.zeros((B, K, L, 0))
        y = mx.zeros_like(q)
        if complete := blocks.complete:
            k, v = self.compress_k(k, blocks.every), self.compress_v(v, blocks.every)
            visible = blocks.allowed(L)[..., :complete] & (blocks.first[:complete] + self.block <= queries(L, S) + 1)
            dropout = self.dropout if self.training else 0.0
            y, importance = attend_to_blocks(q, k, v, scale=self.scale, visible=visible, dropout=dropout)
        missing = blocks.first.size - complete
        return y, mx.pad(importance, [(0, 0), (0, 0), (0, 0), (0, missing)])

    def _selected(self, q: mx.array, k: mx.array, v: mx.array, importance: mx.array, blocks: Blocks) -> mx.array:
        """``(B, H, L, C)``, what the positions of the selected blocks say."""
        L, S = q.shape[2], k.shape[2]
        chosen = select_blocks(
            importance,
            forced=blocks.forced(L)[:, None],
            allowed=blocks.allowed(L)[:, None],
            n_selected=self.n_selected,
        )
        mask = blocks.positions(chosen) & causal_mask(L, S)
        # A mask of its own for every head of keys: as many of them as of queries, which `attend` takes in any form.
        k, v, mask = (mx.repeat(a, self.n_heads // self.n_kv_heads, axis=1) for a in (k, v, mask))
        return self._attend(q, k, v, mask)

    def _near(self, q: mx.array, k: mx.array, v: mx.array, segment_ids: mx.array | None) -> mx.array:
        """``(B, H, L, C)``, what the last positions say."""
        L, S = q.shape[2], k.shape[2]
        seen = min(S, L + self.near.window - 1)
        mask = self.near.with_segments(L, seen, S, segment_ids)
        return self._attend(q, k[:, :, S - seen :], v[:, :, S - seen :], mask)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> mx.array:
        bias = None if self.position is None else self.position.bias(q.shape[2], k.shape[2])
        dropout = self.dropout if self.training else 0.0
        return attend(q, k, v, scale=self.scale, mask=mask, bias=bias, dropout=dropout)

    def make_cache(self) -> KVCache:
        return KVCache()

    def state_size(self, seq_len: int) -> int:
        return 6 * self.n_kv_heads * self.head_dim * seq_len

    def mixing_flops(self, seq_len: int) -> int:
        visible = self.near.visible(seq_len)
        for own in range(-(-seq_len // self.block)):
            n = min(self.block, seq_len - own * self.block)
            visible += n * (n + 1) // 2 + n * self.block * min(own, self.n_selected - 1)  # selected
            visible += n * own + (n == self.block)  # compressed
        # The model counts every linear layer once a position; these run once a block and head.
        weights = self.compress_k.size() + self.compress_v.size()
        times = self.n_kv_heads * (seq_len // self.block)
        return (4 * self.n_heads * self.head_dim * visible + 2 * weights * (times - seq_len)) // seq_len


def queries(L: int, S: int) -> mx.array:
    """``(L, 1)``: which of the ``S`` positions the queries are, the last."""
    return mx.arange(S - L, S)[:, None]


class Blocks:
    """Where blocks begin: at every multiple of ``block``.

    Args:
        block: positions of one.
        S: positions in all.

    Attributes:
        every: from one beginning to the next.
        first: ``(N,)``, where each begins.
        complete: how many of them, the first, are not cut off at the end.
    """

    def __init__(self, block: int, S: int):
        self.block, self.every, self.length = block, block, S
        self.first = mx.arange(0, S, block)
        self.complete = S // block

    def allowed(self, L: int) -> mx.array:
        """``(1, L, N)`` boolean: blocks of which the last ``L`` positions may see something."""
        return (self.first <= queries(L, self.length))[None]

    def forced(self, L: int) -> mx.array:
        """``(1, L, N)`` boolean: the first block, and each position's own."""
        own = queries(L, self.length) // self.block * self.block
        return ((self.first == own) | (self.first == 0))[None]

    def positions(self, chosen: mx.array) -> mx.array:
        """From blocks to what they are made of: ``(B, K, L, N)`` to ``(B, K, L, S)``, both boolean."""
        return mx.repeat(chosen, self.block, axis=-1)[..., : self.length]


class BlocksOfDocuments(Blocks):
    """At every multiple of ``block``, counted from the beginning of each document. Any position can be one: N is S.

    Args:
        block: positions of one.
        segment_ids: ``(B, S)``, the documents.
    """

    def __init__(self, block: int, segment_ids: mx.array):
        self.block, self.every, self.length = block, 1, segment_ids.shape[1]
        self.first = mx.arange(self.length)
        self.complete = max(0, self.length - block + 1)
        self._document = document_starts(segment_ids)
        self._own = self.first - (self.first - self._document) % block  # where each position's block begins

    def allowed(self, L: int) -> mx.array:
        """``(B, L, N)``; all positions are queries."""
        of_document = (self.first >= self._document[..., None]) & (self.first <= queries(L, self.length))
        return of_document & (self._own == self.first)[:, None]

    def forced(self, L: int) -> mx.array:
        return (self.first == self._own[..., None]) | (self.first == self._document[..., None])

    def positions(self, chosen: mx.array) -> mx.array:
        return mx.take_along_axis(chosen, self._own[:, None, None], axis=-1)


class Compression(nn.Module):
    """A block of vectors as one: ``outer(gelu(inner(all of them, each with its place's vector)))``.

    Args:
        block: vectors of a block.
        head_dim: width of one, and of the hidden layer.
        bias: whether the two layers have biases.

    Shapes:
        ``(B, K, S, C) -> (B, K, S // block, C)``; what is left of the last block is not used. With blocks that begin
        at every position, ``every=1``: ``(B, K, S - block + 1, C)``.

    Source: Yuan et al. 2025, "Native Sparse Attention", eq. 7: an MLP that knows the place in the block.
    """

    def __init__(self, block: int, head_dim: int, bias: bool):
        super().__init__()
        self.position = mx.zeros((block, head_dim))
        self.inner = nn.Linear(block * head_dim, head_dim, bias=bias)
        self.outer = nn.Linear(head_dim, head_dim, bias=bias)

    def __call__(self, x: mx.array, every: int | None = None) -> mx.array:
        B, K, S, _ = x.shape
        block, C = self.position.shape
        if every == 1:
            n = S - block + 1
            blocks = mx.stack([x[:, :, i : i + n] for i in range(block)], axis=3)  # a gather has a scatter as gradient
        else:
            n = S // block
            blocks = x[:, :, : n * block].reshape(B, K, n, block, C)
        blocks = blocks + self.position
        return self.outer(nn.gelu(self.inner(blocks.reshape(B, K, n, block * C))))

    def size(self) -> int:
        """Weights of the two layers."""
        return self.inner.weight.size + self.outer.weight.size
