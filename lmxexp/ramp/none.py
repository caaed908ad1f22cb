"""No ramp: one shape from the first step to the last."""

from __future__ import annotations

from collections.abc import Sequence

from lmxexp.interfaces import Batch, Grows, Source, Stage


class NoRamp:
    """Every step trains on a whole batch of the source.

    Args:
        batch_size: B, sequences in a step.
        seq_len: L, tokens in a sequence.
    """

    grows: Grows | None = None
    cuts_rows = False

    def __init__(self, batch_size: int, seq_len: int):
        self.stages: Sequence[Stage] = [Stage(0, batch_size, seq_len)]

    def batch(self, source: Source, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        return source.batch(step, rank=rank, world=world)
