"""How far a run is, and how long its steps take."""

import time
from collections import Counter
from dataclasses import dataclass, field

from lmxexp.interfaces import Stage


@dataclass
class Progress:
    """How far the run is: all of the trainer's state that is no array. Saved with every checkpoint."""

    step: int = 0
    best_eval_loss: float | None = None
    best_eval_step: int | None = None
    eval_loss: float | None = None
    """Of the model at ``step``; None where it was not evaluated there."""
    unlogged: dict[str, float] | None = None
    """Training metrics of ``step`` while its callbacks have not all run and its line is not logged."""


@dataclass
class StepClock:
    """Time spent in training steps, without evaluation, logging, checkpoints, and without the first step of each stage
    in the process, which compiles."""

    seconds: float = 0.0
    waited: float = 0.0
    """Of these, for batches that were not ready when their step could have begun."""
    steps_of: Counter[Stage] = field(default_factory=Counter)
    """Steps that are in ``seconds``, by their stage."""
    first_step_seconds: float | None = None
    first_step_at: float | None = None
    """When it was through, as `time.perf_counter` has it."""
    _compiled: set[Stage] = field(default_factory=set)
    _first: Stage | None = None
    _seconds_of_first: float = 0.0

    @property
    def compile_seconds(self) -> float | None:
        """What the first step took longer than later ones of its stage: tracing, and the kernels' compiler. None before
        there is a later one."""
        n = 0 if self._first is None else self.steps_of[self._first]
        if self.first_step_seconds is None or n == 0:
            return None
        return max(self.first_step_seconds - self._seconds_of_first / n, 0.0)

    @property
    def steps(self) -> int:
        """All that are in ``seconds``."""
        return self.steps_of.total()

    def add(self, seconds: float, stage: Stage, waited: float = 0.0) -> None:
        if self.first_step_seconds is None:
            self.first_step_seconds, self.first_step_at = seconds, time.perf_counter()
            self._first = stage
        if stage in self._compiled:
            self.seconds += seconds
            self.waited += waited
            self._seconds_of_first += seconds if stage == self._first else 0.0
            self.steps_of[stage] += 1
        self._compiled.add(stage)
