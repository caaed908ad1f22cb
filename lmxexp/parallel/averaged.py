"""Data parallelism: whole models on all ranks, and gradients averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import Aux
from lmxexp.parallel.draws import rows_of
from lmxexp.parallel.world import Ranks
from lmxexp.train.checkpoint import check_shapes
from lmxexp.train.step import global_norm

_TOTAL = "n_targets of all ranks"
_SUMS = ("nll", "n_targets", "n_correct")
"""Of what a loss returns beside its value, what is added up. Of the rest the mean counts, by targets."""


class Averaged:
    """Every rank has the whole model and optimizer. Implements `lmxexp.train.devices.Devices`.

    With parts (``train.n_micro``) the ranks' sums are averaged once, after the last part.

    Args:
        world: the ranks.
    """

    by_parts = False

    def __init__(self, world: Ranks):
        self.world, self.rank, self.size = world, world.rank, world.size
        self.state = {"asked to stop": mx.array(0.0)}

    def draws(self) -> AbstractContextManager[None]:
        return rows_of(self.rank, self.size)

    def parameters(self, own: Any) -> Any:
        return own

    def weighed(self, loss: mx.array, aux: Aux) -> tuple[mx.array, Aux]:
        n = mx.stop_gradient(aux["n_targets"])
        total = self._sum(n)
        # Exactly 1 where all have equally many, as without padding.
        return loss * (n * self.size / mx.maximum(total, 1e-9)), {**aux, _TOTAL: total}

    def mean(self, gradient: Any, loss: mx.array, aux: Aux) -> tuple[Any, mx.array, Aux]:
        gradient = nn.average_gradients(gradient, self.world.group)
        total, n = aux[_TOTAL], aux["n_targets"]
        share = n / mx.maximum(total, 1e-9)
        mine = {name: a.astype(mx.float32) for name, a in aux.items() if name not in ("n_targets", _TOTAL)}
        mine = {name: a if name in _SUMS else a * share for name, a in mine.items()}
        summed = self._sum_together({"": loss.astype(mx.float32) / self.size, **mine})
        return gradient, summed.pop(""), {**summed, "n_targets": total}

    def average(self, total: Any) -> Any:
        return nn.average_gradients(total, self.world.group)

    def norm(self, gradient: Any) -> mx.array:
        return global_norm(gradient)

    def stop(self) -> mx.array:
        return self._sum(self.state["asked to stop"])

    def ask_to_stop(self, asked: bool) -> None:
        self.state["asked to stop"] = mx.array(float(asked))

    def meet(self) -> None:
        self.world.total([0.0])

    def whole(self, parameters: Any) -> Any:
        return parameters

    def total(self, numbers: Sequence[float]) -> list[float]:
        return self.world.total(numbers)

    def save(self, trees: Mapping[str, Any], write: Callable[[Iterable[tuple[str, Any]]], Any]) -> None:
        if self.world.is_main:
            write(trees.items())

    def load(self, read: Callable[[], Mapping[str, mx.array]], name: str, tree: Any = None) -> dict[str, mx.array]:
        on_disk: dict[str, mx.array] = {}

        def read_all() -> None:
            on_disk.update(read())
            if tree is not None:
                check_shapes(self._whole_shapes(name, tree), on_disk, f"{name}.safetensors")

        self.world.from_main(read_all)
        return {path: self._own(name, path, a) for path, a in self.world.arrays_of_main(on_disk)}

    def _whole_shapes(self, name: str, tree: Any) -> Any:
        """A tree of the shapes that a checkpoint has."""
        return tree

    def _own(self, name: str, path: str, whole: mx.array) -> mx.array:
        """This rank's part."""
        return whole

    def _sum(self, a: mx.array) -> mx.array:
        return mx.distributed.all_sum(a, group=self.world.group)

    def _sum_together(self, arrays: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Sums of small arrays over the ranks, in one operation."""
        flat = self._sum(mx.concatenate([a.reshape(-1) for a in arrays.values()]))
        ends = [0]
        for a in arrays.values():
            ends.append(ends[-1] + a.size)
        return {
            name: flat[start:end].reshape(a.shape)
            for (name, a), start, end in zip(arrays.items(), ends, ends[1:], strict=False)
        }
