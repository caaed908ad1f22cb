"""Runs that are trained together: each goes its own way between the steps, which are computed for all at once."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import mlx.core as mx
import numpy as np

from lmxexp import device
from lmxexp.population.say import say
from lmxexp.population.settings import NotMappable
from lmxexp.population.step import PopulationStep
from lmxexp.train import checkpoint
from lmxexp.train.drive import Stepped, Steps, alone, begun_again
from lmxexp.train.fitted import LARGEST
from lmxexp.train.memory import Ledger, is_out_of_memory
from lmxexp.train.random_state import STATE, get_random_state, set_random_state
from lmxexp.train.snapshot import fill
from lmxexp.train.trainer import Trainer

T = TypeVar("T")


@dataclass(eq=False)
class Member(Generic[T]):
    """One run. ``begin`` brings it to its first step; from then on it waits for steps."""

    steps: Steps[T]
    output: Any
    """With ``suspend`` and ``resume``: where the run's prints go while it is at work."""
    trainer: Trainer | None = None
    """Waits for a step; None: before the first, and after the last."""
    result: T | None = None
    random_state: int = 0
    ended: bool = field(default=False, init=False)

    def begin(self) -> None:
        self._resume(lambda: None)

    def send(self, stepped: Stepped) -> None:
        self._resume(lambda: self.steps.send(stepped))

    def throw(self, error: BaseException) -> None:
        """Tell the run that its step failed; it leaves word of that, or begins again with a smaller one."""
        self._resume(lambda: self.steps.throw(error))

    def alone(self) -> None:
        """Go on by itself to the end."""
        assert self.trainer is not None
        set_random_state(self.random_state)
        trainer, self.trainer = self.trainer, None
        self.output.resume()
        try:
            self.result = alone(self.steps, trainer)
        finally:
            self.ended = True
            self.output.suspend()

    def _resume(self, work: Any) -> None:
        self.output.resume()
        try:
            waits = work()
            if waits is None:
                self.trainer = None
                waits = begun_again(self.steps)
                self.random_state = get_random_state()
            self.trainer = waits
        except StopIteration as end:
            self.result, self.trainer, self.ended = end.value, None, True
        except BaseException:
            self.trainer, self.ended = None, True
            raise
        finally:
            self.output.suspend()


def together(members: Sequence[Member[Any]], memory_gb: float | None = None) -> str | None:
    """Train runs that wait for their first step to their ends, in as many populations as memory asks for.

    Args:
        members: at the same step, of shapes and structure that agree.
        memory_gb: that a population may take; None: nothing is known.

    Returns:
        None, or why no step could be made for all of them: then none was made, and they wait as before.
    """
    trainers = [_trainer(member) for member in members]
    size, why = _size_within(memory_gb, trainers[0]) if memory_gb is not None else (len(members), "")
    if size < len(members):
        say(f"{len(members)} points in steps of {size}, {why}")
    for start in range(0, len(members), size):
        part = slice(start, start + size)
        try:
            _train(Population(members[part], trainers[part]))
        except (_NotBegun, NotMappable) as error:
            return str(error)
    return None


def align(directories: Sequence[Path]) -> None:
    """Let runs go on from the same step that were killed while one after the other wrote its checkpoint.

    Those that had written it go back to the one before, which the others stand at: so the same members are trained
    together again, and what they come to is the same to the bit on devices too whose products depend on their number.

    Args:
        directories: of their checkpoints.
    """
    steps = [{path.name: path for path in directory.glob("step_*")} for directory in directories]
    if not all(steps):
        return
    newest = {max(of_one) for of_one in steps}
    behind = min(newest)
    if len(newest) == 2 and all(behind in of_one for of_one in steps):
        for of_one in steps:
            for name, path in of_one.items():
                if name > behind:
                    checkpoint.discard(path)


class _NotBegun(Exception):
    """The first step of a population failed: its members wait as before."""


def _train(population: Population) -> None:
    """To the ends of all members."""
    while not population.is_over:
        try:
            stepped = population.step()
        except BaseException as error:
            if is_out_of_memory(error) and len(population) > 1:
                say(f"out of memory: {len(population)} points go on in two halves")
                for half in population.halves():
                    _train(half)
                return
            if isinstance(error, Exception) and not population.begun:
                raise _NotBegun(f"{type(error).__name__}: {error}") from error
            population.fail(error)
            return
        population.hand_out(*stepped)


def _size_within(memory_gb: float, trainer: Trainer) -> tuple[int, str]:
    """Members whose steps are estimated to fit, one at least; and why no more."""
    document_mask = getattr(trainer.source, "document_mask", False)
    of_step = (trainer.model, trainer.optimizer, trainer.loss, trainer.settings, trainer.compute_dtype)
    ledger = Ledger(*of_step, document_mask)
    try:
        step = ledger.of(trainer.settings.parts, "none")  # see `LanguageModel.hidden`
    except ValueError:  # what MLX cannot trace is left to be found out
        return sys.maxsize, ""
    # Beside the step: the state before it, kept for when it fails, and in the first one the members' own arrays.
    fitting = int(memory_gb * device.GB / (step.peak + 2 * (step.weights + step.optimizer)))
    of_logits = LARGEST // ledger.n_logits(trainer.settings.parts)
    if of_logits < fitting:
        return max(1, of_logits), f"as their logits are one array, of at most {LARGEST:,} numbers"
    return max(1, fitting), f"for {memory_gb:.3g} GB of memory"


class Population:
    """Members and the step of all of them.

    Args:
        members: waiting for their first step.
        trainers: theirs.
    """

    def __init__(self, members: Sequence[Member[Any]], trainers: Sequence[Trainer]):
        first = trainers[0]
        if len({trainer.source.fingerprint for trainer in trainers}) > 1:
            raise NotMappable("data: its content differs")
        self._members, self._trainers = list(members), list(trainers)
        self._step = PopulationStep(
            [trainer.model for trainer in trainers],
            [trainer.optimizer for trainer in trainers],
            [trainer.loss for trainer in trainers],
            [mx.random.key(member.random_state) for member in members],
            max_grad_norm=first.settings.max_grad_norm,
            n_micro=first.settings.parts,
            stages=first.ramp.stages,
            compute_dtype=first.compute_dtype,
            compile=first.settings.compile,
        )
        self._batches = [trainer.batch(trainer.step) for trainer in trainers]
        self._lost: set[int] = set()
        self.begun = self._sharing = False

    def __len__(self) -> int:
        return len(self._members)

    def halves(self) -> Iterator[Population]:
        """Two populations of half the members each, which go on from where they are; the second when it is asked for:
        until then its members wait."""
        device.clear_cache()
        middle = (len(self) + 1) // 2
        for places in (range(middle), range(middle, len(self))):
            half = copy.copy(self)
            half._members, half._trainers, half._batches = (
                [of_all[i] for i in places] for of_all in (self._members, self._trainers, self._batches)
            )
            half._step, half._sharing = self._step.part(places), False
            half._lost = {i for i, place in enumerate(places) if place in self._lost}
            if not half.is_over:
                yield half

    @property
    def is_over(self) -> bool:
        return not any(map(self._is_in, range(len(self))))

    def _is_in(self, i: int) -> bool:
        """Whether a member goes on here. One that begins again with smaller steps does not, but by itself later."""
        return self._members[i].trainer is self._trainers[i]

    def step(self) -> tuple[dict[str, np.ndarray], float]:
        """The next step of all members: their scalars, ``(P,)`` by name, and its seconds. If it fails they stay as they
        were."""
        start, before = time.perf_counter(), self._step.state
        try:
            scalars = self._step(self._batches)
            mx.async_eval(scalars, self._step.state)
            following = [  # on the host, while the device computes
                trainer.batch(trainer.step + 1) if self._is_in(i) else None for i, trainer in enumerate(self._trainers)
            ]
            mx.eval(scalars)
            device.wait()
        except BaseException:
            self._step.state = before
            raise
        # Those that are out need one of the others' shape, whatever is in it.
        any_of_them = next(batch for batch in following if batch is not None)
        self._batches = [any_of_them if batch is None else batch for batch in following]
        found = {name: np.array(_plain(a)) for name, a in scalars.items()}
        lost = [i for i, loss in enumerate(found["train/loss"]) if not np.isfinite(loss) and i not in self._lost]
        if lost:
            self._lost.update(lost)
            self._step.freeze(lost, before)
        return found, time.perf_counter() - start

    def hand_out(self, scalars: dict[str, np.ndarray], seconds: float) -> None:
        """Each member does what it does after a step: log, evaluate, save."""
        self._share()
        saved = []
        for i, (member, trainer) in enumerate(zip(self._members, self._trainers, strict=True)):
            if not self._is_in(i):
                continue
            own: dict[str, Any] = {name: a[i] for name, a in scalars.items()}
            member.send(Stepped(own, seconds))
            if trainer.fetched_at == trainer.step:  # it may have drawn random numbers
                self._step.set_key(i, STATE[0][:])
                saved.append(trainer)
        for trainer in saved:  # now that all have a checkpoint of this step
            if trainer.checkpoints.is_dir():
                checkpoint.prune(trainer.checkpoints, trainer.settings.keep)

    def fail(self, error: BaseException) -> None:
        """The step could not be computed: every member is told, and leaves word of that."""
        raised = None
        for i, member in enumerate(self._members):
            if self._is_in(i):
                try:
                    member.throw(error)
                except BaseException as e:
                    raised = e
        if raised is not None:
            raise raised

    def _share(self) -> None:
        """One model and optimizer serve all members from the first step on: `Trainer.fetch` puts a member's state
        there."""
        if self._sharing:
            return
        first = self._trainers[0]
        for i, trainer in enumerate(self._trainers):
            trainer.model, trainer.optimizer, trainer.evaluator = first.model, first.optimizer, first.evaluator
            trainer.fetch = lambda i=i: self._fetch(i)
            trainer.n_members = max(trainer.n_members, len(self))
        self.begun = self._sharing = True

    def _fetch(self, i: int) -> None:
        first = self._trainers[0]
        parameters, optimizer, key = self._step.member(i)
        self._step.load(first.model, parameters)
        fill(first.optimizer.state, optimizer)
        STATE[0][:] = key
        mx.eval(first.model.parameters(), first.optimizer.state, STATE[0])


def _trainer(member: Member[Any]) -> Trainer:
    assert member.trainer is not None, "it waits for a step"
    return member.trainer


def _plain(scalars: mx.array) -> mx.array:
    return scalars.astype(mx.float32) if mx.issubdtype(scalars.dtype, mx.floating) else scalars
