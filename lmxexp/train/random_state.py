"""MLX's global random state as a number."""

from typing import Any

import mlx.core as mx

STATE: Any = mx.random.state
"""MLX's own object, which compiled functions capture; its one element is the key."""


def get_random_state() -> int:
    """The key that the next draw without a key of its own will use."""
    high, low = STATE[0].tolist()
    return (high << 32) | low


def set_random_state(state: int) -> None:
    """Go on from a state that `get_random_state` gave. A seed is the key's 64 bits."""
    mx.random.seed(state)
