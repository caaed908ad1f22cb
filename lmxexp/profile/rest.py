"""What a training step does beside the model: the update, the whole, and the host's work."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_map

from lmxexp.interfaces import RunInfo
from lmxexp.logger.jsonl import Jsonl
from lmxexp.ops.trees import numbers
from lmxexp.optim import curvature
from lmxexp.profile.clock import seconds
from lmxexp.profile.result import Row
from lmxexp.ramp.stages import stage_of
from lmxexp.train.parts import n_parts
from lmxexp.train.random_state import STATE
from lmxexp.train.step import TrainStep, split, to_arrays

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


def update_rows(trainer: Trainer, step: TrainStep, arrays: dict[str, mx.array]) -> list[Row]:
    """The update with its clipping, and if there are any the sum of micro-batches and the estimate of the curvature.

    The state is another afterwards.

    Args:
        step: of the trainer's.
        arrays: a micro-batch.
    """
    rows: list[Row] = []
    state = [step.model.state, step.optimizer.state, STATE]
    compiled: Any = _compiled(step, state)
    gradient, loss, aux = compiled(lambda arrays: step._gradient(arrays)[1:])(arrays)
    mx.eval(gradient, loss, aux, step.state)
    n_micro = parts(trainer)
    if n_micro == 1:
        apply = compiled(
            lambda gradient, loss, aux: step._update(step.model.trainable_parameters(), gradient, loss, aux)
        )
        update = lambda: apply(gradient, loss, aux)
    else:
        total = step._part(arrays)
        mx.eval(total)
        rows.append(_accumulation(step, n_micro, total, gradient, compiled))
        update = lambda: step._apply(dict(total))  # it takes the number of targets out

    def updates(n: int) -> None:
        scalars: Any = None
        for _ in range(n):  # a chain by the optimizer's state
            scalars = update()
        mx.eval(scalars, step.state)

    leaf: Any = curvature.curved(step.optimizer)
    if leaf is not None:
        estimates = lambda n: [mx.eval(step._estimate(arrays), step.state) for _ in range(n)]
        ms = 1e3 * seconds(estimates) / leaf.estimate_every
        rows.append(Row("curvature", calls=1 / leaf.estimate_every, other_ms=ms))
    clipping = "" if trainer.settings.max_grad_norm is None else "with clipping"
    kind = " ".join(filter(None, (type(step.optimizer).__name__, clipping)))
    return [*rows, Row("optimizer", kind, other_ms=1e3 * seconds(updates))]


def _compiled(step: TrainStep, state: list[Any]) -> Callable[[Any], Any]:
    return (lambda f: mx.compile(f, inputs=state, outputs=state)) if step.compiled else lambda f: f


def _accumulation(step: TrainStep, n_micro: int, total: Any, gradient: Any, compiled: Callable[[Any], Any]) -> Row:
    """A gradient times its number of targets, in fp32, and added to those before."""
    weigh = compiled(lambda gradient, n: tree_map(lambda a: a.astype(mx.float32) * n, gradient))

    def add(n: int) -> None:
        summed = total["gradient"]
        for _ in range(n):
            summed = step._add(summed, weigh(gradient, total["n"]))
        mx.eval(summed)

    return Row("accumulation", calls=n_micro, other_ms=1e3 * n_micro * seconds(add))


def whole_step_seconds(trainer: Trainer, step: TrainStep) -> float:
    """Of one step as the trainer computes it; the state is another afterwards. Where every so many begin with an
    estimate of the curvature, the mean over so many."""
    batch = trainer.batch(trainer.step)

    def steps(n: int) -> None:
        for _ in range(n):
            scalars = step(batch)
            mx.async_eval(scalars, step.state)
            mx.eval(scalars)
        mx.eval(step.state)

    leaf: Any = curvature.curved(step.optimizer)
    return seconds(steps, multiple=1 if leaf is None else leaf.estimate_every)


def to_device_row(trainer: Trainer) -> Row:
    """A batch from the host's memory to MLX's arrays."""
    batch = trainer.batch(trainer.step)
    copies = lambda n: [mx.eval(to_arrays(batch)) for _ in range(n)]
    return Row("host to device", other_ms=1e3 * seconds(copies))


def data_row(trainer: Trainer) -> Row:
    """A batch by the source, another one each time."""
    at = trainer.step

    def batches(n: int) -> None:
        nonlocal at
        for _ in range(n):
            trainer.batch(at)
            at += 1

    return Row("data", type(trainer.source).__name__, other_ms=1e3 * seconds(batches))


def logging_row(trainer: Trainer, info: RunInfo, scalars: dict[str, mx.array]) -> Row:
    """A step's scalars as numbers and their line in a ``metrics.jsonl``, which is thrown away; a step's share of it."""
    with tempfile.TemporaryDirectory() as directory:
        logger = Jsonl()
        logger.start(dataclasses.replace(info, run_dir=Path(directory), resume_step=0, config={}))
        write = lambda n: [logger.log(numbers(scalars), step=i) for i in range(n)]
        try:
            each = seconds(write)
        finally:
            logger.finish("ok", {})
    every = trainer.settings.log_every
    return Row("logging", "metrics.jsonl", calls=1 / every, other_ms=1e3 * each / every)


def micro_batch(trainer: Trainer) -> dict[str, mx.array]:
    """The first part of the next batch, on the device."""
    arrays = split(to_arrays(trainer.batch(trainer.step)), parts(trainer))[0]
    mx.eval(arrays)
    return arrays


def parts(trainer: Trainer) -> int:
    """That the next batch is computed in."""
    stages = trainer.ramp.stages
    return n_parts(stages, trainer.settings.parts)[stage_of(stages, trainer.step).shape]
