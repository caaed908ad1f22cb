"""Who computes the steps that a run asks for.

A run is a generator: it yields its `Trainer` when it is ready for an optimizer step, and is sent what came of it. So
the same run trains alone (`alone`) or with others in one step (`lmxexp.population`), and knows no difference.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import mlx.core as mx

from lmxexp import device

if TYPE_CHECKING:
    from lmxexp.interfaces import Batch, Stage
    from lmxexp.train.step import TrainStep
    from lmxexp.train.trainer import Trainer

T = TypeVar("T")


@dataclass(frozen=True)
class Stepped:
    """What came of a step."""

    scalars: dict[str, mx.array]
    """Evaluated."""
    seconds: float
    """From the end of the step before it, or from its own beginning if that is later."""
    waited: float = 0.0
    """Of these, for a batch: its own, or that of the next step, if that was begun."""


Steps = Generator["Trainer | None", Stepped, T]
"""It yields None where it begins again with smaller steps: who computes them lets go of the trainer that it had, and
asks with ``next`` for that of the steps to come (`begun_again`)."""


def alone(steps: Steps[T], trainer: Trainer | None = None) -> T:
    """Compute all steps of one run; what it returns.

    Args:
        steps: the run.
        trainer: what it has yielded already, where it waits for a step.
    """
    try:
        compute = Alone(trainer or begun_again(steps))
        del trainer  # or its model would stay beside that of a run that begins again
        while True:
            try:
                stepped = compute()
            except BaseException as error:
                compute.forget()
                waits = steps.throw(error)  # the run is told, and leaves word of how it ended unless it begins again
            else:
                waits = steps.send(stepped)
            if waits is None:
                compute.forget()
                compute = Alone(begun_again(steps))
    except StopIteration as end:
        return end.value


def begun_again(steps: Steps[Any]) -> Trainer:
    """What a run that has begun, for the first time or once more, waits with for a step."""
    trainer = next(steps)
    while trainer is None:  # it did not come as far as a step
        trainer = next(steps)
    return trainer


class Alone:
    """Computes the steps of one run on this process's device, each time it is called one.

    The device always has a step to compute while the host looks at the one before: a step is begun before the scalars
    of the last are read, unless something may look at the state between the two (`Trainer.goes_on`). Its batch is made
    on a thread of its own, one step earlier.

    Args:
        trainer: its ``step`` says which step comes next; whoever calls counts it on.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._step: TrainStep | None = None
        self._batches = _Batches(trainer)
        self._under_way: _UnderWay | None = None
        self._compiled: Stage | None = None
        self._done_at = self._waited = 0.0

    def __call__(self) -> Stepped:
        trainer = self._trainer
        this, self._under_way = self._under_way or self._begin(trainer.step), None
        trainer.ahead = False
        # Not while shapes are new: the time that the compiler takes would be that of the step before.
        if trainer.stage(trainer.step) == self._compiled and trainer.goes_on():
            self._under_way, trainer.ahead = self._begin(trainer.step + 1), True
        mx.eval(this.scalars)
        if self._under_way is None:
            device.wait()  # something may look at the state next, or write it
        self._compiled = trainer.stage(trainer.step)
        begun, self._done_at = max(this.begun, self._done_at), time.perf_counter()
        waited, self._waited = self._waited, 0.0
        return Stepped(this.scalars, self._done_at - begun, waited)

    def _begin(self, step: int) -> _UnderWay:
        begun = time.perf_counter()
        if self._step is None:
            self._step = self._trainer.make_step()
        batch, waited = self._batches(step)
        self._waited += waited
        scalars = self._step(batch)
        mx.async_eval(scalars, self._step.state)
        return _UnderWay(scalars, begun)

    def forget(self) -> None:
        """Let go of the run and its state; it computes nothing any more."""
        if vars(self):
            self._batches.close()
        vars(self).clear()


@dataclass(frozen=True)
class _UnderWay:
    scalars: dict[str, mx.array]
    begun: float


class _Batches:
    """A run's batches, the next of which is made while the device computes."""

    def __init__(self, trainer: Trainer):
        self._trainer = trainer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._next: tuple[int, Future[Batch]] | None = None

    def __call__(self, step: int) -> tuple[Batch, float]:
        """The batch of a step, and the seconds that it was waited for."""
        if self._next is None or self._next[0] != step:
            self._next = step, self._thread.submit(self._trainer.batch, step)
        start = time.perf_counter()
        batch = self._next[1].result()
        waited = time.perf_counter() - start
        self._next = step + 1, self._thread.submit(self._trainer.batch, step + 1)
        return batch, waited

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
