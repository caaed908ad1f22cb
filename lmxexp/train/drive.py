"""Who computes the steps that a run asks for.

A run is a generator: it yields its `Trainer` when it is ready for an optimizer step, and is sent what came of it. So
the same run trains alone (`alone`) or with others in one step (`lmxexp.population`), and knows no difference.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import mlx.core as mx

if TYPE_CHECKING:
    from lmxexp.train.step import TrainStep
    from lmxexp.train.trainer import Trainer

T = TypeVar("T")


@dataclass(frozen=True)
class Stepped:
    """What came of a step."""

    scalars: dict[str, mx.array]
    """Evaluated."""
    seconds: float


Steps = Generator["Trainer", Stepped, T]


def alone(steps: Steps[T], trainer: Trainer | None = None) -> T:
    """Compute all steps of one run; what it returns.

    Args:
        steps: the run.
        trainer: what it has yielded already, where it waits for a step.
    """
    try:
        if trainer is None:
            trainer = next(steps)
        compute = Alone(trainer)
        del trainer  # or its model would stay beside that of a run that begins again
        while True:
            try:
                stepped = compute()
            except BaseException as error:
                compute.forget()
                # The run is told. It leaves word of how it ended, or begins again with smaller steps.
                compute = Alone(steps.throw(error))
                continue
            steps.send(stepped)
    except StopIteration as end:
        return end.value


class Alone:
    """Computes the steps of one run on this process's device, each time it is called one.

    While the device computes, the host makes the batch of the next step.

    Args:
        trainer: its ``step`` says which batch comes next; whoever calls counts it on.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._step: TrainStep | None = None

    def __call__(self) -> Stepped:
        trainer = self._trainer
        if self._step is None:
            self._step, self._batch = trainer.make_step(), trainer.batch(trainer.step)
        start = time.perf_counter()
        scalars = self._step(self._batch)
        mx.async_eval(scalars, self._step.state)
        self._batch = trainer.batch(trainer.step + 1)  # on the host, while the device computes
        # The scalars are known before the update is through: the device goes on while the host looks.
        mx.eval(scalars)
        return Stepped(scalars, time.perf_counter() - start)

    def forget(self) -> None:
        """Let go of the run and its state."""
        del self._trainer, self._step
