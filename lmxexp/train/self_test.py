"""The start-up proof that the compiled step does what the plain one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lmxexp.interfaces import Batch
from lmxexp.ops.trees import by_path, number
from lmxexp.train.random_state import get_random_state, set_random_state
from lmxexp.train.snapshot import Snapshot
from lmxexp.train.step import TrainStep, to_arrays

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


class SelfTestError(RuntimeError):
    """The compiled step is not the step that was written."""


def prove(trainer: Trainer) -> None:
    """`self_test` for each shape of a run's batches, of which the first two are taken."""
    dropout = _draws_random_numbers(trainer)
    for stage in trainer.ramp.stages:
        steps = [step for step in range(stage.start, stage.start + 2) if trainer.stage(step) == stage]
        self_test(
            trainer.make_step,
            [trainer.batch(step) for step in steps],
            dropout=dropout,
            exact=trainer.precision == "fp32",
        )


def self_test(make_step: Any, batches: Sequence[Batch], *, dropout: bool, exact: bool) -> None:
    """Steps compiled and plain, from the same state: equal losses and parameters; and dropout that differs.

    In fp32 no element may differ by more than 1e-4 of the largest. In bf16 the sign of a gradient that is next to
    nothing is a matter of rounding, and Adam makes a whole step of it: there elements may differ by 3e-2 of what they
    are, on average.

    Model, optimizer and random state are as before when it returns.

    Args:
        make_step: ``make_step(compile=bool) -> TrainStep`` over one model and optimizer.
        batches: of one shape, a step each; two show that the state is carried on.
        dropout: whether the model draws random numbers in training.
        exact: whether the steps compute in fp32.

    Raises:
        SelfTestError: what differs, and by how much.
    """
    size, tolerance = (mx.max, 1e-4) if exact else (mx.mean, 3e-2)
    plain, compiled = make_step(compile=False), make_step(compile=True)
    start = Snapshot(plain.model, plain.optimizer)
    try:
        expected = _steps(plain, batches)
        start.restore()
        actual = _steps(compiled, batches)
        for name, want in expected.items():
            got = actual[name]
            error = number(size(mx.abs(got - want))) / (number(size(mx.abs(want))) + 1e-6)
            if not error <= tolerance:
                raise SelfTestError(f"compiled and plain step differ in {name} by {error:.2g} (relative)")
        if dropout:
            start.restore()
            _check_dropout(compiled, batches[0])
    finally:
        start.restore()


def _draws_random_numbers(trainer: Trainer) -> bool:
    """Whether a training forward pass moves the random state on, as dropout does."""
    before, batch = get_random_state(), trainer.batch(0)
    with trainer.weights(trainer.model.trainable_parameters()):
        trainer.loss(trainer.model, batch._replace(**to_arrays(batch)))
    moved = get_random_state() != before
    set_random_state(before)
    return moved


def _steps(step: TrainStep, batches: Sequence[Batch]) -> dict[str, mx.array]:
    losses = []
    for batch in batches:
        scalars = step(batch)
        mx.eval(scalars, step.state)
        losses.append(scalars["train/loss"])
    # Not what is moved by whole steps, such as the bias that balances experts: one token may tip it.
    trained = by_path(step.model.trainable_parameters())
    weights = {name: mx.array(a.astype(mx.float32)) for name, a in trained.items()}
    return {**{f"loss of step {i}": loss for i, loss in enumerate(losses, start=1)}, **weights}


def _check_dropout(step: TrainStep, batch: Batch) -> None:
    state = [step.model.state, mx.random.state]
    arrays = to_arrays(batch)
    forward = mx.compile(lambda: step.loss(step.model, Batch(**arrays))[0], inputs=state, outputs=state)
    if forward().item() == forward().item():
        raise SelfTestError("dropout drops the same elements at every step: the random state is not part of the state")
