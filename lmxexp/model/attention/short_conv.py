"""LFM2's gated short convolution."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.attention.conv1d import DepthwiseConv1d
from lmxexp.model.recompute import cheap
from lmxexp.model.recurrent_cache import RecurrentCache


class ShortConv(nn.Module):
    """A convolution over a few positions between two gates: ``out_proj(c * conv(b * x))``, with ``b, c, x`` projected
    from the input.

    Args:
        d_model: width of the input and output.
        layer_idx: place in the stack, counted from 0.
        conv_width: positions that an output sees, its own among them.
        bias: whether the projections and the convolution have biases.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Cost:
        Cache: ``(conv_width - 1) D`` elements, whatever the length. Mixing: ``2 conv_width D`` FLOPs a position.

    Source: Liquid AI 2025, "LFM2 Technical Report", section 2 (the gated short convolution).
    """

    def __init__(self, d_model: int, layer_idx: int = 0, conv_width: int = 3, bias: bool = False):
        super().__init__()
        self.in_proj = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.conv = DepthwiseConv1d(d_model, conv_width, bias, layer_idx)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def __call__(self, x: mx.array, *, cache: Any = None, segment_ids: mx.array | None = None) -> mx.array:
        if cache is not None and segment_ids is not None:
            raise NotImplementedError("segment_ids together with a cache: decode one document at a time")
        b, c, x = mx.split(self.in_proj(x), 3, axis=-1)
        y, state = self.conv(b * x, None if cache is None else cache.get("conv"), segment_ids)
        if cache is not None:
            cache.update(x.shape[1], conv=state)
        return self.out_proj(cheap(mx.multiply, c, y))

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache()

    def state_size(self, seq_len: int) -> int:
        return self.conv.state_size()

    def mixing_flops(self, seq_len: int) -> int:
        return self.conv.flops()
