"""Checkpoints during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class Checkpoint:
    """Writes ``checkpoints/step_XXXXXXXX`` from which the run can be resumed bit for bit.

    The newest ``train.keep`` stay, and the best: the one with the lowest ``eval/loss`` among those that were
    evaluated at their step.

    Args:
        every: steps between two checkpoints; 0: at the end only.
    """

    at_end = True
    after_log = True

    def __init__(self, every: int):
        self.every = every

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        trainer.save_checkpoint()
        return {}
