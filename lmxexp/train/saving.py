"""A trainer's checkpoints: what is in them, and going on from one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Stateful
from lmxexp.train import checkpoint
from lmxexp.train.progress import Progress
from lmxexp.train.random_state import get_random_state, set_random_state
from lmxexp.train.snapshot import fill

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


def save(trainer: Trainer) -> None:
    """Write model, optimizer, random state and progress; see `lmxexp.train.checkpoint`. Of several devices one writes.

    Raises:
        OSError: the disk is full, say.
    """
    state = {**asdict(trainer.progress), "random_state": get_random_state(), "run_id": trainer.run_id}
    trees = {"model": trainer.model.parameters(), "optimizer": trainer.optimizer.state}
    if kept := {name: c.state for name, c in trainer.callbacks.items() if isinstance(c, Stateful) and c.state}:
        trees["callbacks"] = {f"{name}:{key}": a for name, arrays in kept.items() for key, a in arrays.items()}

    def write(whole: Iterable[tuple[str, Any]]) -> None:
        try:
            checkpoint.save(trainer.checkpoints, state, whole)
        except OSError as e:
            raise OSError(
                e.errno,
                f"{e.strerror}: the checkpoint of step {trainer.step} was not written to {trainer.checkpoints}, those "
                f"before it are whole; free space and go on with resume={trainer.run_dir}",
            ) from e
        if trainer.fetch is None:  # else whoever computes the steps does, once all that go together have one
            checkpoint.prune(trainer.checkpoints, trainer.settings.keep)

    if trainer.devices is None:
        write(trees.items())
    else:
        trainer.devices.save(trees, write)


def restore(trainer: Trainer, saved: checkpoint.Checkpoint) -> None:
    """Go on from a checkpoint. Before the step is compiled: the state that it captures must be the restored one.

    Raises:
        CheckpointError: damaged, or of another model or optimizer.
    """
    model = _load(trainer, saved, "model", trainer.model.parameters())
    trainer.model.update(tree_unflatten(list(model.items())))
    fill(trainer.optimizer.state, _load(trainer, saved, "optimizer", trainer.optimizer.state))
    if "callbacks.safetensors" in saved.files:
        arrays = _load(trainer, saved, "callbacks")
        for name, callback in trainer.callbacks.items():
            if isinstance(callback, Stateful):
                prefix = f"{name}:"
                own = {key.removeprefix(prefix): a for key, a in arrays.items() if key.startswith(prefix)}
                callback.restore(own)
    state = dict(saved.state)
    set_random_state(state.pop("random_state"))
    state.pop("run_id")
    trainer.progress = Progress(**state)
    mx.eval(trainer.model.parameters(), trainer.optimizer.state)


def _load(trainer: Trainer, saved: checkpoint.Checkpoint, name: str, tree: Any = None) -> Mapping[str, mx.array]:
    if trainer.devices is not None:
        return trainer.devices.load(partial(saved.load, name), name, tree)
    arrays = saved.load(name)
    if tree is not None:
        checkpoint.check_shapes(tree, arrays, f"{saved.path}/{name}.safetensors")
    return arrays
