"""How far back a position sees: what fills the slot ``reach`` of softmax attention.

A reach brings the mask and the cache that belong to it, and counts what is visible.
"""

from typing import Any

import mlx.core as mx

from lmxexp.interfaces import ConfigError
from lmxexp.model.cache import ChunkCache, KVCache, WindowCache
from lmxexp.ops.attend import causal_mask, segment_mask
from lmxexp.ops.documents import places


class Full:
    """All positions up to the query's own."""

    def mask(self, n_q: int, n_k: int, end: int) -> mx.array | None:
        """``(n_q, n_k)`` boolean, True where a query may look; None: all that is not the future.

        Args:
            n_q: queries, the last positions.
            n_k: keys at hand, the last positions too.
            end: positions seen so far, these among them.
        """
        return None

    def with_segments(self, n_q: int, n_k: int, end: int, segment_ids: mx.array | None) -> mx.array | None:
        """The mask within one document; see `mask`. With ``segment_ids`` ``(B, L)`` it is ``(B, 1, L, L)``."""
        mask = self.mask(n_q, n_k, end)
        if segment_ids is None:
            return mask
        if n_q != n_k:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        return (causal_mask(n_q, n_k) if mask is None else mask) & segment_mask(segment_ids)

    def make_cache(self) -> Any:
        return KVCache()

    def kept(self, seq_len: int) -> int:
        """Positions in the cache after ``seq_len``."""
        return seq_len

    def visible(self, seq_len: int) -> int:
        """Positions that a query sees, summed over the queries of a sequence."""
        return seq_len * (seq_len + 1) // 2


class Window(Full):
    """The last ``window`` positions, the query's own among them.

    Args:
        window: positions seen, at least 1.

    Source: Beltagy et al. 2020, "Longformer", section 3.1; Jiang et al. 2023, "Mistral 7B". The window counts the
        position itself, as in Mistral's code.
    """

    def __init__(self, window: int):
        if window < 1:
            raise ConfigError(f"attention.reach.window={window} must be at least 1, the position itself")
        self.window = window

    def mask(self, n_q: int, n_k: int, end: int) -> mx.array | None:
        # All keys within reach of the first query: the plain causal mask is the same, and its kernel faster.
        return None if n_k <= self.window else causal_mask(n_q, n_k, window=self.window)

    def make_cache(self) -> WindowCache:
        return WindowCache(self.window)

    def kept(self, seq_len: int) -> int:
        return min(seq_len, self.window)

    def visible(self, seq_len: int) -> int:
        w = min(self.window, seq_len)
        return w * (w + 1) // 2 + (seq_len - w) * w


class Chunk(Full):
    """What lies before the query in its own chunk of ``chunk`` positions; chunks do not see each other.

    Args:
        chunk: positions of a chunk, at least 1. Chunks are counted from the start of the sequence, or of the document
            where documents are kept apart.

    Source: Meta 2025, "Llama 4" (local attention of the released models).
    """

    def __init__(self, chunk: int):
        if chunk < 1:
            raise ConfigError(f"attention.reach.chunk={chunk} must be at least 1")
        self.chunk = chunk

    def mask(self, n_q: int, n_k: int, end: int) -> mx.array | None:
        if end <= self.chunk:
            return None
        query = mx.arange(end - n_q, end)[:, None]
        key = mx.arange(end - n_k, end)[None]
        return (key <= query) & (query // self.chunk == key // self.chunk)

    def with_segments(self, n_q: int, n_k: int, end: int, segment_ids: mx.array | None) -> mx.array | None:
        if segment_ids is None:
            return self.mask(n_q, n_k, end)
        of_document = Full().with_segments(n_q, n_k, end, segment_ids)
        assert of_document is not None
        return of_document & segment_mask(places(segment_ids) // self.chunk)

    def make_cache(self) -> ChunkCache:
        return ChunkCache(self.chunk)

    def kept(self, seq_len: int) -> int:
        return seq_len % self.chunk

    def visible(self, seq_len: int) -> int:
        whole, rest = divmod(seq_len, self.chunk)
        return whole * self.chunk * (self.chunk + 1) // 2 + rest * (rest + 1) // 2
