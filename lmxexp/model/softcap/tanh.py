"""Soft capping by tanh."""

import mlx.core as mx

from lmxexp.interfaces import ConfigError


class TanhSoftcap:
    """``cap * tanh(x / cap)``: nearly x where it is small, never beyond ``cap``.

    Source: Gemma Team 2024, "Gemma 2", section 2.
    """

    def __init__(self, cap: float = 30.0):
        if cap <= 0:
            raise ConfigError(f"softcap.cap={cap} must be positive; softcap=none turns it off")
        self.cap = cap

    def __call__(self, x: mx.array) -> mx.array:
        return self.cap * mx.tanh(x / self.cap)
