"""PyTorch beside lmxexp, on the same kind of device."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lmxexp import blas, device
from lmxexp.bench.measure import Contestant
from lmxexp.bench.peers import Task
from lmxexp.bench.torch_llama import Llama, Training
from lmxexp.interfaces import ConfigError


class TorchStep(Contestant):
    """A hand-written llama under fused AdamW.

    On a CPU it gets as many threads as MLX's BLAS has; fp32 products are in TF32 exactly where MLX's are.

    Args:
        compile: whether ``torch.compile`` makes forward and backward.

    Raises:
        ConfigError: PyTorch has no such device as MLX runs on.
    """

    def __init__(self, task: Task, *, compile: bool):
        super().__init__()
        self.name = "torch.compile" if compile else "torch eager"
        if task.precision == "bf16":
            self.note = "its optimizer's state is bf16, lmxexp's fp32"
        self._task = task
        self._device = torch_device()
        if self._device == "cpu" and (n_threads := blas.which().threads):
            torch.set_num_threads(n_threads)
        torch.set_float32_matmul_precision("high" if os.environ.get("MLX_ENABLE_TF32") == "1" else "highest")
        if self._device == "cuda":
            self._held_gb = torch.cuda.memory_allocated() / device.GB
        self._model = Llama(task.shape)
        self._model.load(task.weights)
        self._model.to(self._device)
        self._compile = compile
        self._training: Training | None = None

    def run(self, n_steps: int) -> list[float]:
        if self._training is None:  # here, because it casts the weights that `loss` wants in fp32
            if self._compile:
                torch.compiler.reset()  # of earlier cases: beyond eight shapes it would go on uncompiled
            self._training = Training(
                self._model,
                precision=self._task.precision,
                compile=self._compile,
                rates=self._task.rates(),
                betas=self._task.betas,
                eps=self._task.eps,
                weight_decay=self._task.weight_decay,
                max_grad_norm=self._task.max_grad_norm,
            )
        done = self._training.n_done
        batches = [self._task.source.batch(done + i) for i in range(n_steps)]
        return self._training.run([(b.inputs, b.targets) for b in batches])

    def n_params(self) -> int:
        return self._model.n_params()

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        self._model.load(weights)

    def loss(self, batch: Any) -> float:
        x, y = (torch.from_numpy(a).to(self._device).long() for a in (batch.inputs, batch.targets))
        with torch.no_grad():
            return float(self._model(x, y))

    def reset_peak(self) -> None:
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float | None:
        """PyTorch counts its arrays on CUDA only."""
        return torch.cuda.max_memory_allocated() / device.GB - self._held_gb if self._device == "cuda" else None


def torch_device() -> str:
    """Of MLX's kind.

    Raises:
        ConfigError: there is none.
    """
    backend = device.device_info()["backend"]
    if backend not in ("cpu", "cuda"):
        raise ConfigError(f"torch is compared on CPUs and on CUDA devices, and MLX runs on {backend}")
    if backend == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device, and MLX runs on one: install PyTorch for CUDA")
    return backend
