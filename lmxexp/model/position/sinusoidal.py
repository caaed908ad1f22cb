"""Fixed sinusoidal positions."""

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError


class SinusoidalPosition(nn.Module):
    """Adds sines and cosines of the absolute position, in wavelengths from 2 pi to ``2 pi theta``.

    The first half of the elements are sines and the second cosines (the paper interleaves them: a fixed permutation).

    Args:
        d_model: width, even.
        theta: base of the wavelengths.

    Shapes:
        ``(B, L, D) -> (B, L, D)``.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5. We scale the sinusoids by 0.02 * sqrt(2), so
        that their mean square is that of the token embeddings (std 0.02); the paper instead multiplies the
        embeddings by sqrt(d_model).
    """

    max_len = None

    def __init__(self, d_model: int, theta: float = 10000.0):
        super().__init__()
        if d_model % 2:
            raise ConfigError(f"model.d_model={d_model} must be even for position=sinusoidal")
        self.d_model, self.theta = d_model, theta

    def __call__(self, x: mx.array, offset: int, places: mx.array | None = None) -> mx.array:
        half = self.d_model // 2
        frequency = mx.exp(mx.arange(half) * (-mx.log(mx.array(self.theta)) / half))
        places = mx.arange(offset, offset + x.shape[1]) if places is None else places
        angle = places[..., None] * frequency
        return x + (0.02 * 2**0.5 * mx.concatenate([mx.sin(angle), mx.cos(angle)], axis=-1)).astype(x.dtype)
