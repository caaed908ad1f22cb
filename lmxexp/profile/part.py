"""A part of the training step as a function of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from lmxexp.ops.trees import by_path
from lmxexp.train.traced import for_training

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Part:
    """What is computed for one micro-batch, once: modules of one kind have one part, with the first one's inputs.

    Args:
        name: embedding, mixer, ffn, norms, block, final norm, ahead, head and loss, or whole.
        kind: the module's class; empty where there is but one.
        layers: where in the stack it stands.
        calls: in a forward pass over one micro-batch.
        module: whose parameters it has.
        params: those of the module's that it uses, a tree for ``module.update``.
        x: the input that is made to depend on the call before.
        others: further arrays that go in.
        call: ``call(x, others)``, the outputs that a gradient comes back to.
    """

    name: str
    kind: str
    layers: tuple[int, ...]
    calls: int
    module: nn.Module
    params: dict[str, Any]
    x: mx.array
    others: Arrays
    call: Callable[[mx.array, Arrays], list[mx.array]]

    def outputs(self, params: Any, x: mx.array, others: Arrays, dtype: mx.Dtype | None) -> list[mx.array]:
        """A forward pass, with parameters cast to ``dtype`` as the training step casts them."""
        with for_training(self.module, params, dtype) as used:
            return self._with(used, x, others)

    def gradients(
        self, params: Any, x: mx.array, others: Arrays, cotangents: list[mx.array], dtype: mx.Dtype | None
    ) -> list[mx.array]:
        """A forward and a backward pass: the outputs, and the gradients of all parameters and inputs that have one.

        Without the outputs, what no gradient needs would not be computed, such as a last product, or all of a norm.
        """
        with for_training(self.module, params, dtype) as used:  # the step's gradients are of these as well
            leaves = by_path({"params": used, "x": x, "others": others})
            moving = [path for path, a in leaves.items() if mx.issubdtype(a.dtype, mx.floating)]

            def of(*arrays: mx.array) -> list[mx.array]:
                tree: Any = tree_unflatten(list((leaves | dict(zip(moving, arrays, strict=True))).items()))
                return self._with(tree.get("params", {}), tree["x"], tree.get("others", {}))

            outputs, found = mx.vjp(of, [leaves[path] for path in moving], cotangents)
        return [*outputs, *found]

    def _with(self, params: Any, x: mx.array, others: Arrays) -> list[mx.array]:
        """What comes out with these parameters."""
        own = self.module.parameters()
        self.module.update(params)
        try:
            return self.call(x, others)
        finally:
            self.module.update(own)  # a trace would leave its own arrays there
