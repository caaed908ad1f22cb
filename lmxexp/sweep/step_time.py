"""How long a training step takes on this machine."""

from __future__ import annotations

import copy
import gc
import logging
import statistics
import time
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from lmxexp import device
from lmxexp.build import build
from lmxexp.interfaces import Batch, Stage
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.ramp.build import ramp_of
from lmxexp.train import precision
from lmxexp.train.fitted import fitted
from lmxexp.train.memory import Ledger
from lmxexp.train.random_state import get_random_state, set_random_state
from lmxexp.train.step import TrainStep

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lmxexp.train.settings import TrainSettings

log = logging.getLogger("lmxexp")

WARM_UP = 3
"""Steps before the clock starts: the first compiles, and kernels are loaded in the next."""

AT_LEAST, AT_MOST = 7, 50
"""Steps that are timed."""

UNSTEADY = 0.2
"""Spread of the middle half of the steps above which the median is not to be trusted."""

SECONDS = 2.0
"""Short steps are repeated for so long: the median of few would be a lottery."""


def step_seconds(cfg: DictConfig, vocab_size: int, stage: Stage) -> float:
    """The median time of a training step of what ``cfg`` describes, as the trainer performs it, on random tokens.

    Model and optimizer are made and thrown away; the random state stays as it was.

    Args:
        stage: of the ramp that ``cfg`` has: the one whose step is timed.

    Raises:
        ConfigError: settings that cannot work.
    """
    random_state = get_random_state()
    try:
        return _median(copy.deepcopy(cfg), vocab_size, stage)  # instantiate resolves interpolations in place
    finally:
        set_random_state(random_state)
        gc.collect()  # a compiled step holds itself, its model and its optimizer
        device.clear_cache()
        device.reset_peak_memory()


def _median(cfg: DictConfig, vocab_size: int, stage: Stage) -> float:
    """In a function of its own, so that nothing is left of its step when it is through."""
    step = _make_step(cfg, vocab_size)
    rng = np.random.default_rng(0)
    seconds: list[float] = []
    for i in range(WARM_UP + AT_MOST):
        ids = rng.integers(0, vocab_size, (stage.batch_size, stage.seq_len + 1), dtype=np.int32)
        start = time.perf_counter()
        scalars = step(Batch(ids[:, :-1], ids[:, 1:]))
        mx.eval(scalars, step.state)
        if i >= WARM_UP:
            seconds.append(time.perf_counter() - start)
        if len(seconds) >= AT_LEAST and sum(seconds) > SECONDS:
            break
    low, middle, high = statistics.quantiles(seconds, n=4)
    if high > low * (1 + UNSTEADY):
        log.warning(
            "match=time: half of the steps took %.3g to %.3g ms: this machine is busy with something else, and the "
            "solved train.steps will be as far off",
            1e3 * low,
            1e3 * high,
        )
    return middle


def _make_step(cfg: DictConfig, vocab_size: int) -> TrainStep:
    settings: TrainSettings = build(cfg.train)
    model = build_model(cfg, vocab_size=vocab_size)
    chosen = precision.resolve(settings.precision, on_gpu=device.is_gpu())
    if chosen == "bf16":
        model.set_dtype(mx.bfloat16)
    optimizer = optimizer_of(cfg)
    model.train()
    optimizer.init(model.trainable_parameters())
    loss, compute_dtype = build(cfg.loss), precision.compute_dtype(chosen)
    settings = fitted(settings, Ledger(model, optimizer, loss, settings, compute_dtype))
    model.remat = settings.chosen_remat
    return TrainStep(
        model,
        optimizer,
        loss,
        max_grad_norm=settings.max_grad_norm,
        n_micro=settings.parts,
        stages=ramp_of(cfg).stages,
        compute_dtype=compute_dtype,
        compile=settings.compile,
    )
