"""Learned absolute positions."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError
from lmxexp.ops.embed import embed


class LearnedPosition(nn.Embedding):
    """Adds a learned vector for each absolute position.

    Args:
        d_model: width.
        max_len: positions there are vectors for.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Raises:
        ConfigError: a position at or beyond ``max_len``.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training".
    """

    def __init__(self, d_model: int, max_len: int):
        super().__init__(max_len, d_model)
        self.max_len = max_len

    def __call__(self, x: mx.array, offset: int, places: mx.array | None = None) -> mx.array:
        end = offset + x.shape[1]
        if end > self.max_len:
            raise ConfigError(
                f"position {end - 1} asked for, but position=learned has model.position.embedding.max_len="
                f"{self.max_len} vectors: raise it, or use position=rope"
            )
        return x + (self.weight[offset:end] if places is None else embed(self.weight, places))
