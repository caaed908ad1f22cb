"""Token embedding and output head, apart."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.embed import embed


class UntiedEmbedding(nn.Module):
    """Two ``(V, D)`` matrices, one to embed tokens and one to give logits."""

    def __init__(self, vocab_size: int, d_model: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, d_model)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def embed(self, tokens: mx.array) -> mx.array:
        """``(B, L) -> (B, L, D)``."""
        return embed(self.embed_tokens.weight, tokens)

    def logits(self, h: mx.array) -> mx.array:
        """``(B, L, D) -> (B, L, V)``."""
        return self.lm_head(h)

    @property
    def head(self) -> mx.array:
        """``(V, D)``: logits are the product with it."""
        return self.lm_head.weight

    def head_size(self) -> int:
        """Weights of the product that gives the logits, beyond those of ``nn.Linear`` modules."""
        return 0
