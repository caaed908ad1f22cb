"""What every residual block has: a mixer, a feed-forward, dropout."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux, Factory, Shared
from lmxexp.ops.own_gradient import own_gradient
from lmxexp.ops.rms_norm import beside


class ResidualBlock(nn.Module):
    """A layer of two sublayers, mixer and feed-forward; either may be absent. Subclasses place the norms.

    Args:
        d_model: width.
        layer_idx: place in the stack, counted from 0.
        mixer: factory of a `Mixer`; None, or one that builds None: no mixer.
        ffn: factory of a `FeedForward`; likewise.
        norm: factory of a norm over ``d_model``.
        dropout: probability of dropping an element of a sublayer's output in training.
    """

    def __init__(
        self,
        d_model: int,
        layer_idx: int,
        mixer: Factory | None,
        ffn: Factory | None,
        norm: Factory,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.self_attn = mixer(d_model=d_model, layer_idx=layer_idx) if mixer else None
        self.mlp = ffn(d_model=d_model) if ffn else None
        self.dropout = nn.Dropout(dropout)
        self.make_norms(d_model, norm)

    def make_norms(self, d_model: int, norm: Factory) -> None:
        """Set the norms that this placement has, for the sublayers that there are."""
        raise NotImplementedError

    def __call__(
        self,
        x: mx.array,
        *,
        cache: Any = None,
        segment_ids: mx.array | None = None,
        shared: Shared | None = None,
    ) -> tuple[mx.array, Aux]:
        """``(B, L, D) -> (B, L, D)`` and what the feed-forward returns beside its output."""
        raise NotImplementedError

    def mix(self, x: mx.array, cache: Any, segment_ids: mx.array | None, shared: Shared | None) -> mx.array:
        """The mixer's output."""
        mixer = self.self_attn
        assert mixer is not None
        if getattr(mixer, "takes_shared", False):
            return mixer(x, cache=cache, segment_ids=segment_ids, shared=shared)
        return mixer(x, cache=cache, segment_ids=segment_ids)

    @staticmethod
    def branch(norm: nn.Module, x: mx.array) -> tuple[mx.array, mx.array]:
        """``x`` to go on with, and ``norm(x)`` for a sublayer."""
        if own_gradient.plain:
            return x, norm(x)
        with beside(x) as stream:
            y = norm(x)
        return stream[0], y

    def make_cache(self) -> Any:
        return self.self_attn.make_cache() if self.self_attn is not None else None
