"""Token embedding that is the output head as well."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.embed import embed


class TiedEmbedding(nn.Module):
    """One ``(V, D)`` matrix embeds tokens and gives logits.

    Args:
        vocab_size: V.
        d_model: D.
        scale: what embedded tokens are multiplied by, the logits not; None: ``sqrt(d_model)``, which lets the matrix
            be small, as a head's should, and the stream be of the size of the sublayers' outputs.

    Source: Press & Wolf 2017, "Using the Output Embedding to Improve Language Models"; the scale: Vaswani et al. 2017,
        "Attention Is All You Need", section 3.4; Gemma Team 2024, "Gemma".
    """

    def __init__(self, vocab_size: int, d_model: int, scale: float | None = 1.0):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, d_model)
        self.scale = d_model**0.5 if scale is None else scale

    def embed(self, tokens: mx.array) -> mx.array:
        """``(B, L) -> (B, L, D)``."""
        x = embed(self.embed_tokens.weight, tokens)
        return x if self.scale == 1.0 else x * self.scale

    def logits(self, h: mx.array) -> mx.array:
        """``(B, L, D) -> (B, L, V)``."""
        return self.embed_tokens.as_linear(h)

    @property
    def head(self) -> mx.array:
        """``(V, D)``: logits are the product with it."""
        return self.embed_tokens.weight

    def head_size(self) -> int:
        """Weights of the product that gives the logits, beyond those of ``nn.Linear`` modules."""
        return self.embed_tokens.weight.size
