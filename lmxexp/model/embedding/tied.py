"""Token embedding that is the output head as well."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.embed import embed


class TiedEmbedding(nn.Module):
    """One ``(V, D)`` matrix embeds tokens and gives logits.

    Source: Press & Wolf 2017, "Using the Output Embedding to Improve Language Models".
    """

    def __init__(self, vocab_size: int, d_model: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, d_model)

    def embed(self, tokens: mx.array) -> mx.array:
        """``(B, L) -> (B, L, D)``."""
        return embed(self.embed_tokens.weight, tokens)

    def logits(self, h: mx.array) -> mx.array:
        """``(B, L, D) -> (B, L, V)``."""
        return self.embed_tokens.as_linear(h)

    def head_size(self) -> int:
        """Weights of the product that gives the logits, beyond those of ``nn.Linear`` modules."""
        return self.embed_tokens.weight.size
