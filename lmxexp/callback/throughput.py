"""Speed of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class Throughput:
    """``perf/tokens_per_s`` and ``perf/step_ms`` over the steps since the last call, and ``perf/mfu``: the share of the
    device's matrix-product peak, measured when the run started, that the model's FLOPs make up.

    Training steps alone count: not evaluation, logging, checkpoints, nor the first step, which compiles.

    Args:
        every: steps between two readings.
    """

    at_end = True
    after_log = False

    def __init__(self, every: int):
        self.every = every
        self._steps = 0
        self._seconds = 0.0

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        steps, seconds = trainer.clock.steps - self._steps, trainer.clock.seconds - self._seconds
        self._steps, self._seconds = trainer.clock.steps, trainer.clock.seconds
        if steps == 0:
            return {}
        tokens_per_s = steps * trainer.tokens_per_step / seconds
        metrics = {"perf/tokens_per_s": tokens_per_s, "perf/step_ms": 1e3 * seconds / steps}
        if trainer.peak_flops:
            flops = trainer.model.flops_per_token(trainer.settings.seq_len)
            metrics["perf/mfu"] = flops * tokens_per_s / trainer.peak_flops
        return metrics
