"""Attention with linear biases."""

import math

import mlx.core as mx


class ALiBi:
    """Subtracts from each score the distance times a slope that belongs to the head.

    Args:
        head_dim: not used.
        n_heads: heads; the slopes are ``2 ** (-8 i / n_heads)``, i from 1. Where ``n_heads`` is no power of two: those
            of the next smaller power, then every second one of the next larger, as in the authors' code.

    Source: Press et al. 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length
        Extrapolation", section 3.
    """

    def __init__(self, head_dim: int, n_heads: int):
        power = 2 ** math.floor(math.log2(n_heads))
        self.slopes = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
        self.slopes += [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)][: n_heads - power]

    def rotate(self, q: mx.array, k: mx.array, offset: int) -> tuple[mx.array, mx.array]:
        return q, k

    def bias(self, n_q: int, n_k: int) -> mx.array | None:
        distance = mx.arange(n_k - n_q, n_k)[:, None] - mx.arange(n_k)[None]
        return -mx.array(self.slopes)[:, None, None] * distance.astype(mx.float32)
