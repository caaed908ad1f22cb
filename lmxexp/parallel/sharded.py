"""Fully sharded data parallelism: each rank keeps its part of every parameter, and of the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx.nn.layers.distributed import fully_shard
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Aux, ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.sum_of_squares import sum_of_squares
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import leaf_optimizers
from lmxexp.parallel.averaged import Averaged
from lmxexp.parallel.world import Ranks
from lmxexp.train.in_parts import InParts
from lmxexp.train.snapshot import fill

_ELEMENTWISE_OF_MLX = ("SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion")


class Sharded(Averaged):
    """A parameter is kept in equal parts (`lmxexp.train.in_parts.InParts`); one that does not divide is kept whole. In
    a step the parts of a layer are gathered for its forward pass, and its gradients added up into the parts, by
    `mlx.nn.layers.distributed.fully_shard`, in the type that the layer computes in.

    `fully_shard` wraps a module, which gives its parameters other paths and hides its methods. Here it wraps the
    layer's parameters alone, so models, optimizers and checkpoints need to know nothing of it.

    Args:
        world: the ranks.
        model: whole; in parts from now on.
        optimizer: initialised for it; likewise.
        compute_dtype: parameters are gathered in it; None: as they are.

    Raises:
        ConfigError: the backend or the optimizer cannot do it.
    """

    by_parts = True

    def __init__(
        self,
        world: Ranks,
        model: LanguageModel,
        optimizer: mlx.optimizers.Optimizer,
        compute_dtype: mx.Dtype | None,
    ):
        super().__init__(world)
        check_optimizer(optimizer)
        parameters = by_path(model.trainable_parameters())
        parts = InParts(model, optimizer, self.size)
        self._shapes, self._axes = parts.shapes, parts.axes
        self._held: list[tuple[list[str], Any]] = []
        for paths in parts.together(parameters):
            whole = [self._first(path, parameters.pop(path)) for path in paths]
            held: Any = fully_shard(_Held(whole), group=world.group, compute_dtype=compute_dtype)
            del whole
            self._held.append((paths, held))
            own = {path: self._back(path, a) for path, a in zip(paths, held.module.arrays, strict=True)}
            model.update(tree_unflatten(list(own.items())))
            mx.eval(own)  # one layer at a time: the whole arrays go
            self._let_go(held)
        fill(optimizer.state, {path: self._own("optimizer", path, a) for path, a in by_path(optimizer.state).items()})

    def parameters(self, own: Any) -> Any:
        found = by_path(own)
        for paths, held in self._held:
            held.module.arrays = [self._first(path, found[path]) for path in paths]
            found |= {path: self._back(path, a) for path, a in zip(paths, held(), strict=True)}
            self._let_go(held)
        return tree_unflatten(list(found.items()))

    def mean(self, gradient: Any, loss: mx.array, aux: Aux) -> tuple[Any, mx.array, Aux]:
        """Where parameters are gathered, their gradients are averaged by the gradient of that; the others are here."""
        found = by_path(gradient)
        whole = {path: g for path, g in found.items() if path not in self._axes["model"]}
        averaged, loss, aux = super().mean(list(whole.values()), loss, aux)
        found |= zip(whole, averaged, strict=True)
        return tree_unflatten([(path, found[path]) for path in by_path(gradient)]), loss, aux

    def average(self, total: Any) -> Any:
        return total

    def norm(self, gradient: Any) -> mx.array:
        # MLX's clip_grad_norm_sharded squares in the gradients' type, and counts what every rank has whole repeatedly.
        arrays, axes = by_path(gradient), self._axes["model"]
        in_parts = sum_of_squares([g for path, g in arrays.items() if path in axes])
        return mx.sqrt(self._sum(in_parts) + sum_of_squares([g for path, g in arrays.items() if path not in axes]))

    def whole(self, parameters: Any) -> Any:
        return tree_unflatten([(path, self._gathered("model", path, a)) for path, a in by_path(parameters).items()])

    def save(self, trees: Mapping[str, Any], write: Callable[[Iterable[tuple[str, Any]]], Any]) -> None:
        def whole() -> Iterator[tuple[str, Any]]:
            for name, tree in trees.items():
                gathered = {path: self._gathered(name, path, a) for path, a in by_path(tree).items()}
                mx.eval(gathered)
                yield name, gathered

        if self.world.is_main:
            write(whole())
        else:
            for _ in whole():
                pass

    def _gathered(self, name: str, path: str, own: mx.array) -> mx.array:
        axis = self._axis(name, path, own, 1)
        if axis is None:
            return own
        whole = mx.distributed.all_gather(mx.contiguous(mx.moveaxis(own, axis, 0)), group=self.world.group)
        return mx.moveaxis(whole, 0, axis)

    def _own(self, name: str, path: str, whole: mx.array) -> mx.array:
        axis = self._axis(name, path, whole, self.size)
        if axis is None:
            return whole
        own = mx.contiguous(mx.split(whole, self.size, axis)[self.rank])
        mx.eval(own)
        return own

    def _whole_shapes(self, name: str, tree: Any) -> Any:
        return {
            path: mx.zeros(self._shapes[name].get(path, a.shape), a.dtype)  # never computed
            for path, a in by_path(tree).items()
        }

    def _axis(self, name: str, path: str, a: mx.array, n: int) -> int | None:
        """The axis along which an array is kept in parts, of which ``a`` has ``n``; None: it is not."""
        if name != "callbacks":
            return self._axes[name].get(path)
        # Averages of the weights, by a name that ends in the parameter's: NAME:PATH, NAME:PLACE/PATH.
        of = path.partition(":")[2].rpartition("/")[2]
        axis = self._axes["model"].get(of)
        if axis is None or a.ndim <= axis:
            return None
        whole = self._shapes["model"][of]
        part = tuple(size // self.size if i == axis else size for i, size in enumerate(whole))
        return axis if a.shape == (whole if n == self.size else part) else None

    def _first(self, path: str, a: mx.array) -> mx.array:
        """With its parts along the first axis, as `fully_shard` has them."""
        return mx.moveaxis(a, self._axes["model"][path], 0)

    def _back(self, path: str, a: mx.array) -> mx.array:
        axis = self._axes["model"][path]
        # In its own order: rows of an embedding are looked up one by one.
        return mx.contiguous(mx.moveaxis(a, 0, axis)) if axis else a

    def _let_go(self, held: Any) -> None:
        # In place of arrays, which would be kept alive, and of those of a trace.
        held.module.arrays = [mx.zeros(a.shape, a.dtype) for a in held.module.arrays]


class _Held(nn.Module):
    """Arrays, as a module that returns them."""

    def __init__(self, arrays: list[mx.array]):
        super().__init__()
        self.arrays = arrays

    def __call__(self) -> list[mx.array]:
        return list(self.arrays)


def check_optimizer(optimizer: mlx.optimizers.Optimizer) -> None:
    """
    Raises:
        ConfigError: an optimizer that has to see whole parameters.
    """
    for leaf in leaf_optimizers(optimizer):
        kind = type(leaf)
        of_mlx = kind.__module__.startswith("mlx.") and kind.__name__ in _ELEMENTWISE_OF_MLX
        if not (of_mlx or vars(kind).get("elementwise", False)):
            raise ConfigError(
                f"train.parallel=fsdp with optim={kind.__name__.lower()}: it computes with whole parameters, of which "
                "each device keeps a part; take train.parallel=data, or an optimizer that goes element by element, "
                "such as adamw or lion"
            )
