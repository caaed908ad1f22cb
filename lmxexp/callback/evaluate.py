"""Evaluation during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class Evaluate:
    """Loss over the whole validation split: ``eval/loss``, ``eval/ppl``, ``eval/bpb``, ``eval/accuracy``.

    Args:
        every: steps between two evaluations; 0: at the end only.
    """

    at_end = True
    after_log = False

    def __init__(self, every: int):
        self.every = every

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        return trainer.evaluate()
