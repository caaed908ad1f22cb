"""The start-up proof that the compiled step does what the plain one does."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Batch
from lmxexp.ops.trees import by_path, number
from lmxexp.train.random_state import get_random_state, set_random_state
from lmxexp.train.step import TrainStep, to_arrays


class SelfTestError(RuntimeError):
    """The compiled step is not the step that was written."""


def self_test(make_step: Any, batches: Sequence[Batch], *, dropout: bool, tolerance: float) -> None:
    """Steps compiled and plain, from the same state: equal losses and parameters; and dropout that differs.

    Model, optimizer and random state are as before when it returns.

    Args:
        make_step: ``make_step(compile=bool) -> TrainStep`` over one model and optimizer.
        batches: of one shape, a step each; two show that the state is carried on.
        dropout: whether the model draws random numbers in training.
        tolerance: relative; rounding of the compute type.

    Raises:
        SelfTestError: what differs, and by how much.
    """
    plain, compiled = make_step(compile=False), make_step(compile=True)
    start = _snapshot(plain)
    try:
        expected = _steps(plain, batches)
        _restore(plain, start)
        actual = _steps(compiled, batches)
        for name, want in expected.items():
            got = actual[name]
            error = number(mx.abs(got - want).max()) / (number(mx.abs(want).max()) + 1e-6)
            if not error <= tolerance:
                raise SelfTestError(f"compiled and plain step differ in {name} by {error:.2g} (relative)")
        if dropout:
            _restore(plain, start)
            _check_dropout(compiled, batches[0])
    finally:
        _restore(plain, start)


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


def _snapshot(step: TrainStep) -> tuple[dict[str, mx.array], dict[str, mx.array], int]:
    # Copies: the step may reuse the buffers that it is given.
    model = {path: mx.array(a) for path, a in by_path(step.model.parameters()).items()}
    optimizer = {path: mx.array(a) for path, a in by_path(step.optimizer.state).items()}
    mx.eval(model, optimizer)
    return model, optimizer, get_random_state()


def _restore(step: TrainStep, snapshot: tuple[dict[str, mx.array], dict[str, mx.array], int]) -> None:
    model, optimizer, random_state = snapshot
    step.model.update(tree_unflatten(list(model.items())))
    fill(step.optimizer.state, optimizer)
    set_random_state(random_state)


def fill(tree: Any, values: Mapping[str, mx.array], prefix: str = "") -> None:
    """Replace the leaves of a tree in place by ``values``, which are named by path.

    In place, because another tree would not be the one that compiled functions captured.
    """
    for key, leaf in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(leaf, mx.array):
            tree[key] = values[f"{prefix}{key}"]
        elif isinstance(leaf, dict | list):
            fill(leaf, values, f"{prefix}{key}.")
