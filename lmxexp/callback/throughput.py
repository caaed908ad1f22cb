"""Speed of training."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from lmxexp.ramp.stages import flops_in, tokens_in

if TYPE_CHECKING:
    from lmxexp.interfaces import Stage
    from lmxexp.train.trainer import Trainer


class Throughput:
    """``perf/tokens_per_s`` and ``perf/step_ms`` over the steps since the last call, ``perf/data_wait``: the share of
    their time that they waited for batches, and ``perf/mfu``: the share of the device's matrix-product peak, measured
    when the run started, that the model's FLOPs make up.

    Training steps alone count: not evaluation, logging, checkpoints, nor the first step of each shape, which compiles.

    Args:
        every: steps between two readings.
    """

    at_end = True
    after_log = False
    reads_state = False

    def __init__(self, every: int):
        self.every = every
        self._steps_of: Counter[Stage] = Counter()
        self._seconds = self._waited = 0.0

    def __call__(self, trainer: Trainer) -> dict[str, float]:
        clock = trainer.clock
        steps_of, seconds = clock.steps_of - self._steps_of, clock.seconds - self._seconds
        waited = clock.waited - self._waited
        self._steps_of, self._seconds, self._waited = clock.steps_of.copy(), clock.seconds, clock.waited
        if not steps_of:
            return {}
        metrics = {
            "perf/tokens_per_s": tokens_in(steps_of) / seconds,
            "perf/step_ms": 1e3 * seconds / steps_of.total(),
            "perf/data_wait": waited / seconds,
        }
        if trainer.peak_flops:
            metrics["perf/mfu"] = flops_in(steps_of, trainer.flops_per_token) / seconds / trainer.peak_flops
        return metrics
