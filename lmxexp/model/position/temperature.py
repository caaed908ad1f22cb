"""Attention that grows sharper with the position."""

import mlx.core as mx

from lmxexp.interfaces import ConfigError


class Temperature:
    """Multiplies queries by a factor that grows with the logarithm of their position; nothing is turned.

    Softmax over ever more keys grows flat; layers without positions (Llama 4's) make up for it by larger scores at
    positions beyond ``floor_scale``: at position t by ``1 + attn_scale * ln(1 + floor((t + 1) / floor_scale))``.

    Args:
        head_dim: not used.
        n_heads: not used.
        floor_scale: positions between two steps of the factor.
        attn_scale: how much the factor grows.

    Shapes:
        ``rotate``: ``(B, H, L, C), (B, K, L, C)`` to the same; keys are left as they are.

    Source: Meta 2025, "Llama 4" (temperature tuning of the layers without positions, released code); Nakanishi 2025,
        "Scalable-Softmax Is Superior for Attention".
    """

    def __init__(self, head_dim: int, n_heads: int, floor_scale: int = 8192, attn_scale: float = 0.1):
        if floor_scale < 1:
            raise ConfigError(f"model.position.attention.floor_scale={floor_scale} must be at least 1 position")
        self.floor_scale, self.attn_scale = floor_scale, attn_scale

    takes_places = True

    def rotate(
        self, q: mx.array, k: mx.array, offset: int, places: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        position = mx.arange(offset, offset + q.shape[2])[None] if places is None else places
        steps = ((position + 1) // self.floor_scale).astype(mx.float32)
        factor = 1.0 + self.attn_scale * mx.log1p(steps)
        return (q * factor[:, None, :, None]).astype(q.dtype), k

    def bias(self, n_q: int, n_k: int) -> mx.array | None:
        return None
