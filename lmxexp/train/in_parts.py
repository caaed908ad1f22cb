"""What of a model and its optimizer devices keep in parts (``train.parallel=fsdp``), and a step on such parts, for the
estimate of its memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Aux
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.sum_of_squares import sum_of_squares
from lmxexp.ops.trees import by_path

Shape = tuple[int, ...]


class InParts:
    """Which arrays ``n`` devices keep in parts, by path, and along which axis: a parameter along the first one that
    divides (GPT-2's vocabulary is odd), and likewise what the optimizer has of the same shape for it.

    Args:
        model: whole.
        optimizer: initialised for it.
        n: devices.
    """

    def __init__(self, model: LanguageModel, optimizer: mlx.optimizers.Optimizer, n: int):
        parameters = by_path(model.trainable_parameters())
        self.n = n
        self.shapes: dict[str, dict[str, Shape]] = {
            "model": {path: a.shape for path, a in by_path(model.parameters()).items()},
            "optimizer": {path: a.shape for path, a in by_path(optimizer.state).items()},
        }
        of_model = {path: axis for path, a in parameters.items() if (axis := _axis(a.shape, n)) is not None}
        self.axes: dict[str, dict[str, int]] = {"model": of_model, "optimizer": {}}
        for path, shape in self.shapes["optimizer"].items():
            of = re.sub(r"^(states\.\d+\.)*", "", path).rpartition(".")[0]  # states.0: the first of several groups
            if of in of_model and shape == self.shapes["model"][of]:
                self.axes["optimizer"][path] = of_model[of]

    def together(self, parameters: Mapping[str, mx.array]) -> list[list[str]]:
        """The paths of parameters that are gathered in one operation: those of a layer, in one type."""
        found: dict[Any, list[str]] = {}
        for path, a in parameters.items():
            if path in self.axes["model"]:
                keys = path.split(".")
                layer = tuple(keys[: 2 if keys[0] == "layers" else 1])
                found.setdefault((*layer, a.dtype), []).append(path)
        return list(found.values())

    def placeholders(self, name: str, tree: Any) -> Any:
        """A tree of arrays of a part's shapes, which are never computed."""

        def shape(path: str) -> Shape:
            axis = self.axes[name].get(path)
            return tuple(n // self.n if i == axis else n for i, n in enumerate(self.shapes[name][path]))

        return tree_unflatten([(path, mx.zeros(shape(path), a.dtype)) for path, a in by_path(tree).items()])


def _axis(shape: Shape, n: int) -> int | None:
    return next((i for i, size in enumerate(shape) if size and size % n == 0), None)


class StandIn:
    """The devices of a step that is traced and not run: nobody is there, and arrays have the sizes that they would.

    Args:
        parts: of its model.
        compute_dtype: as `lmxexp.train.step.TrainStep` takes it.
    """

    rank = 0
    by_parts = True

    def __init__(self, parts: InParts, compute_dtype: mx.Dtype | None):
        self.size, self.state = parts.n, {}
        self._parts, self._compute_dtype = parts, compute_dtype

    def draws(self) -> AbstractContextManager[None]:
        return nullcontext()

    def parameters(self, own: Any) -> Any:
        found = by_path(own)
        for path, axis in self._parts.axes["model"].items():
            part = found[path] if self._compute_dtype is None else found[path].astype(self._compute_dtype)
            found[path] = mx.concatenate([part] * self.size, axis)
        return tree_unflatten(list(found.items()))

    def weighed(self, loss: mx.array, aux: Aux) -> tuple[mx.array, Aux]:
        return loss, aux

    def mean(self, gradient: Any, loss: mx.array, aux: Aux) -> tuple[Any, mx.array, Aux]:
        return gradient, loss, aux

    def norm(self, gradient: Any) -> mx.array:
        return mx.sqrt(sum_of_squares(list(by_path(gradient).values())))

    def stop(self) -> mx.array:
        return mx.array(0.0)
