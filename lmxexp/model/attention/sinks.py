"""Attention to nothing."""

import mlx.core as mx
import mlx.nn as nn


class Sinks(nn.Module):
    """A learned score per head for a key that is not there: the weights of the real keys may sum to less than one.

    Args:
        n_heads: query heads.

    Shapes:
        ``weight`` is ``(H,)``; added to the softmax's denominator as ``exp(weight)``.

    Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2; Xiao et al. 2023, "Efficient Streaming
        Language Models with Attention Sinks".
    """

    def __init__(self, n_heads: int):
        super().__init__()
        self.weight = mx.zeros((n_heads,))
