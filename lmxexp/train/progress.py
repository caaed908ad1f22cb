"""How far a run is, and how long its steps take."""

from dataclasses import dataclass


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
    """Time spent in training steps, without evaluation, logging, checkpoints, and without the first step of the
    process, which compiles. What the device still has to do when the scalars are known counts for the next step."""

    steps: int = 0
    seconds: float = 0.0
    first_step_seconds: float | None = None

    def add(self, seconds: float) -> None:
        if self.first_step_seconds is None:
            self.first_step_seconds = seconds
        else:
            self.steps += 1
            self.seconds += seconds
