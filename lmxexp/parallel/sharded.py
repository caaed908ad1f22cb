"""Fully sharded data parallelism: each rank keeps its part of every parameter, and of the optimizer's state."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
from mlx.nn.layers.distributed import fully_shard
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Aux, ConfigError
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import leaf_optimizers
from lmxexp.parallel.averaged import Averaged, shapes
from lmxexp.parallel.world import Ranks
from lmxexp.train.snapshot import fill

_ELEMENTWISE_OF_MLX = ("SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion")


class Sharded(Averaged):
    """A parameter is kept in equal parts along its first axis; one whose first axis does not divide is kept whole. In a
    step the parts of a layer are gathered for its forward pass, and its gradients added up into the parts, by
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
        self._shapes = {"model": shapes(parameters), "optimizer": shapes(optimizer.state)}
        self._in_parts = {"model": {path for path, a in parameters.items() if divides(a.shape, self.size)}}
        self._held: list[tuple[list[str], Any]] = []
        for paths in together(parameters, self._in_parts["model"]):
            held: Any = fully_shard(
                _Held([parameters.pop(path) for path in paths]), group=world.group, compute_dtype=compute_dtype
            )
            self._held.append((paths, held))
            parts = dict(zip(paths, held.module.arrays, strict=True))
            model.update(tree_unflatten(list(parts.items())))
            mx.eval(parts)  # one layer at a time: the whole arrays go
            self._let_go(held)
        self._in_parts["optimizer"] = {
            path for path, shape in self._shapes["optimizer"].items() if self._is_of_parameter(path, shape)
        }
        fill(optimizer.state, {path: self._own("optimizer", path, a) for path, a in by_path(optimizer.state).items()})

    def _is_of_parameter(self, path: str, shape: tuple[int, ...]) -> bool:
        """Whether an array of the optimizer's state has an element for each of a parameter in parts."""
        of = re.sub(r"^(states\.\d+\.)*", "", path).rpartition(".")[0]
        return of in self._in_parts["model"] and shape == self._shapes["model"][of]

    def parameters(self, own: Any) -> Any:
        found = by_path(own)
        for paths, held in self._held:
            held.module.arrays = [found[path] for path in paths]
            found |= zip(paths, held(), strict=True)
            self._let_go(held)
        return tree_unflatten(list(found.items()))

    def mean(self, gradient: Any, loss: mx.array, aux: Aux) -> tuple[Any, mx.array, Aux]:
        """Where parameters are gathered, their gradients are averaged by the gradient of that; the others are here."""
        found = by_path(gradient)
        whole = {path: g for path, g in found.items() if path not in self._in_parts["model"]}
        averaged, loss, aux = super().mean(list(whole.values()), loss, aux)
        found |= zip(whole, averaged, strict=True)
        return tree_unflatten([(path, found[path]) for path in by_path(gradient)]), loss, aux

    def average(self, total: Any) -> Any:
        return total

    def norm(self, gradient: Any) -> mx.array:
        # MLX's clip_grad_norm_sharded squares in the gradients' type, and counts what every rank has whole repeatedly.
        squares = {True: mx.array(0.0), False: mx.array(0.0)}
        for path, g in by_path(gradient).items():
            kept = path in self._in_parts["model"]
            squares[kept] = squares[kept] + g.astype(mx.float32).square().sum()
        return mx.sqrt(self._sum(squares[True]) + squares[False])

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
        if not self._is_in_parts(name, path, own.shape[:1], 1):
            return own
        return mx.distributed.all_gather(own, group=self.world.group)

    def _own(self, name: str, path: str, whole: mx.array) -> mx.array:
        if not self._is_in_parts(name, path, whole.shape[:1], self.size):
            return whole
        rows = whole.shape[0] // self.size
        own = mx.contiguous(whole[self.rank * rows : (self.rank + 1) * rows])
        mx.eval(own)
        return own

    def _whole_shapes(self, name: str, tree: Any) -> Any:
        return {
            path: mx.zeros(self._shapes[name].get(path, a.shape), a.dtype)  # never computed
            for path, a in by_path(tree).items()
        }

    def _is_in_parts(self, name: str, path: str, rows: tuple[int, ...], times: int) -> bool:
        if name != "callbacks":
            return path in self._in_parts[name]
        # Averages of the weights, by a name that ends in the parameter's: NAME:PATH, NAME:PLACE/PATH.
        of = path.partition(":")[2].rpartition("/")[2]
        return of in self._in_parts["model"] and (rows[0] * self.size // times,) == self._shapes["model"][of][:1]

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


def divides(shape: tuple[int, ...], size: int) -> bool:
    """Whether an array of that shape is kept in parts."""
    return len(shape) > 0 and shape[0] > 0 and shape[0] % size == 0


def together(parameters: Mapping[str, mx.array], in_parts: set[str]) -> list[list[str]]:
    """The paths of parameters that are gathered in one operation: those of a layer, in one type."""
    found: dict[Any, list[str]] = {}
    for path, a in parameters.items():
        if path in in_parts:
            keys = path.split(".")
            layer = tuple(keys[:2]) if keys[0] == "layers" else tuple(keys[:1])
            found.setdefault((*layer, a.dtype), []).append(path)
    return list(found.values())


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
