"""Memory of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmxexp import device

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class Memory:
    """``mem/peak_gb``: the most memory (1e9 bytes) that arrays took at once since the run started.

    Args:
        every: steps between two readings.
    """

    at_end = True
    after_log = False
    reads_state = False

    def __init__(self, every: int):
        self.every = every

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        return {"mem/peak_gb": device.peak_memory_gb()}
