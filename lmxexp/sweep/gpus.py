"""Which process of a sweep has which GPU."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

KEY = "CUDA_VISIBLE_DEVICES"


def cuda_gpus(env: Mapping[str, str] = os.environ) -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` calls them; none on a Mac or a CPU."""
    import mlx.core as mx

    if not mx.cuda.is_available():
        return []
    if KEY in env:
        return [name.strip() for name in env[KEY].split(",") if name.strip()]
    return [str(i) for i in range(mx.device_count(mx.gpu))]


class Slots:
    """Places for processes that run side by side, each on one GPU, which several share where there are more processes
    than GPUs. With one GPU or none there is nothing to choose.

    Args:
        n: processes at a time.
        gpus: of `cuda_gpus`.
    """

    def __init__(self, n: int, gpus: list[str]):
        self.sharing = -(-n // max(1, len(gpus)))
        """Processes that are on one device at a time."""
        self._free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for i in range(n):
            self._free.put(gpus[i % len(gpus)] if len(gpus) > 1 else None)

    @contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """The variables of a process's environment, for as long as it runs; waits where all places are taken."""
        gpu = self._free.get()
        try:
            yield {} if gpu is None else {KEY: gpu}
        finally:
            self._free.put(gpu)
