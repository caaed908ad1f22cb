"""The short convolution that state-space mixers put before their recurrence."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError
from lmxexp.ops.short_conv import causal_conv


class DepthwiseConv1d(nn.Module):
    """A causal convolution of each channel by itself.

    Weights start uniform within ``width ** -0.5``, biases at zero, drawn by the layer's number alone: they are the same
    in every run.

    Args:
        channels: channels.
        width: positions that an output sees, its own among them; at least 2.
        bias: whether there is one a channel.
        layer_idx: place in the stack, counted from 0.

    Shapes:
        ``(B, L, channels)`` and the state ``(B, width - 1, channels)``, or None, to the same two; ``weight`` is
        ``(channels, width)``, its last tap for the position itself.

    Cost:
        Cache: ``(width - 1) channels`` elements. ``2 width channels`` FLOPs a position.

    Raises:
        ConfigError: a width below 2.
    """

    def __init__(self, channels: int, width: int, bias: bool = True, layer_idx: int = 0):
        super().__init__()
        if width < 2:
            raise ConfigError(f"attention.conv_width={width} must be at least 2: with 1, nothing is convolved")
        self.channels, self.width = channels, width
        bound = width**-0.5
        self.weight = mx.random.uniform(-bound, bound, (channels, width), key=mx.random.key(layer_idx))
        if bias:
            self.bias = mx.zeros((channels,))

    def __call__(
        self, x: mx.array, state: mx.array | None = None, segment_ids: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        return causal_conv(x, self.weight, self.get("bias"), state, segment_ids)

    def state_size(self) -> int:
        return (self.width - 1) * self.channels

    def flops(self) -> int:
        """FLOPs a position."""
        return 2 * self.width * self.channels
