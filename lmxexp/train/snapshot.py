"""The state of training, kept aside and put back."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_unflatten

from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path
from lmxexp.train.random_state import get_random_state, set_random_state


class Snapshot:
    """Model, optimizer and random state as they are now, for steps that are taken back.

    Args:
        model: with all its parameters, those that no gradient moves too.
        optimizer: initialised.
    """

    def __init__(self, model: LanguageModel, optimizer: mlx.optimizers.Optimizer):
        self._model, self._optimizer = model, optimizer
        # Copies: a step may reuse the buffers that it is given.
        self._parameters = {path: mx.array(a) for path, a in by_path(model.parameters()).items()}
        self._optimizer_state = {path: mx.array(a) for path, a in by_path(optimizer.state).items()}
        mx.eval(self._parameters, self._optimizer_state)
        self._random_state = get_random_state()

    def restore(self) -> None:
        """Put the state back, into the same objects: those are what compiled functions have captured."""
        self._model.update(tree_unflatten(list(self._parameters.items())))
        fill(self._optimizer.state, self._optimizer_state)
        set_random_state(self._random_state)


def fill(tree: Any, values: Mapping[str, mx.array], prefix: str = "") -> None:
    """Replace the leaves of a tree in place by ``values``, which are named by path.

    In place, because another tree would not be the one that compiled functions captured.
    """
    for key, leaf in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        if isinstance(leaf, mx.array):
            tree[key] = values[f"{prefix}{key}"]
        elif isinstance(leaf, dict | list):
            fill(leaf, values, f"{prefix}{key}.")
