"""What is not kept for the gradient but computed once more: all within a layer, or what costs least of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, partialmethod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from lmxexp.interfaces import Aux, Shared
from lmxexp.ops import rms_norm
from lmxexp.ops.own_gradient import own_gradient
from lmxexp.ops.replaced import replaced
from lmxexp.train.random_state import STATE


def recomputed(
    layer: Any, x: mx.array, *, segment_ids: mx.array | None = None, shared: Shared | None = None
) -> tuple[mx.array, Aux]:
    """``layer(x, segment_ids=, shared=)``; kept for the gradient are its inputs and outputs.

    Random numbers are drawn as without it, and in the second computation as in the first. (`mx.checkpoint` would draw
    others, and leaves to MLX when the gradients of the weights are computed, for which all layers' arrays wait.)

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    """
    key = STATE[0][:]
    flat: Any = tree_flatten({"parameters": layer.parameters(), "x": x, "shared": shared or {}})
    names, arrays = [name for name, _ in flat], [value for _, value in flat]
    made: list[str] = []

    def compute(*arrays: mx.array) -> list[mx.array]:
        inputs: Any = {"shared": {}, **tree_unflatten(list(zip(names, arrays, strict=True)))}
        before, random_state = layer.parameters(), STATE[0][:]
        layer.update(inputs["parameters"])
        STATE[0][:] = key
        try:
            # What the layer adds to a dictionary comes out; the rest has to stay as it was for the second time.
            passed_on = None if shared is None else dict(inputs["shared"])
            y, aux = layer(inputs["x"], cache=None, segment_ids=segment_ids, shared=passed_on)
            flat: Any = tree_flatten({"y": y, "aux": aux, "shared": passed_on or {}, "key": STATE[0][:]})
            made[:] = [name for name, _ in flat]
            return [value for _, value in flat]
        finally:
            layer.update(before)
            STATE[0][:] = random_state

    def gradient(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        again = mx.depends(list(primals), list(cotangents))  # or it might be computed early, and kept
        gradients = mx.vjp(compute, again, list(cotangents))[1]
        where = names.index("x")
        # The layer before goes on once this one is through with its weights, and its arrays are free.
        gradients[where] = mx.depends(gradients[where], [g for i, g in enumerate(gradients) if i != where])
        return gradients

    function = mx.custom_function(compute)
    function.vjp(gradient)
    values: Any = function(*arrays)
    outputs: Any = {"aux": {}, "shared": {}, **tree_unflatten(list(zip(made, values, strict=True)))}
    # Not differentiable, or what is drawn after the layer would have to be.
    STATE[0][:] = mx.stop_gradient(outputs["key"])
    if shared is not None:
        shared.update(outputs["shared"])
    return outputs["y"], outputs["aux"]


_made: dict[int, tuple[mx.array, "_Made"]] | None = None
"""What can be made once more within `light`, by its id; None outside. As it is kept here, no other array has its id."""


@contextmanager
def light() -> Iterator[None]:
    """Within, what a product with weights takes from a norm, or from something `cheap`, is not kept for the gradient.

    It is made once more there, from what it was made of. No product is computed twice, and no attention. Gradients are
    added up in the same order, and so all numbers are the same.
    """
    global _made
    with ExitStack() as stack:
        for name in ("rms_norm", "layer_norm"):
            stack.enter_context(replaced(mx.fast, name, partial(_norm, getattr(mx.fast, name))))
        stack.enter_context(replaced(nn.Linear, "__call__", partialmethod(_weighed_by, nn.Linear.__call__)))
        stack.enter_context(replaced(rms_norm, "is_ours", lambda *_: False))  # its gradient keeps what it is given
        before, _made = _made, {}
        try:
            yield
        finally:
            _made = before


def cheap(function: Callable[..., mx.array], *arrays: mx.array) -> mx.array:
    """``function(*arrays)``, of which `light` keeps the arrays alone: it costs little to compute.

    Args:
        function: draws no random numbers; what has a gradient is among ``arrays``.
    """
    if _made is None:
        return function(*arrays)
    if own_gradient.plain:  # the trace of a graph knows it by its dependency on what is kept
        return mx.depends([function(*arrays)], list(arrays))[0]
    made = _Made(function, arrays)
    return _noted(made.value(), made)


def weighed(product: Callable[..., mx.array], module: nn.Module, x: mx.array, *rest: Any) -> mx.array:
    """``product(module, x, *rest)``, of ``x`` and the module's parameters: see `light`."""
    made = _made_of(x)
    if made is None or own_gradient.plain:
        return product(module, x, *rest)
    flat: Any = tree_flatten(module.parameters())
    names = [name for name, _ in flat]

    def compute(x: mx.array, *parameters: mx.array) -> list[mx.array]:
        before = module.parameters()
        module.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        try:
            return [product(module, x, *rest)]
        finally:
            module.update(before)

    def gradient(primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        of_x, *others = mx.vjp(compute, [made.again(cotangents), *primals[1:]], list(cotangents))[1]
        return [*mx.depends([of_x], others), *others]  # what was made once more is free before the gradient goes on

    function = mx.custom_function(compute)
    function.vjp(gradient)
    values: Any = function(x, *(value for _, value in flat))
    return values[0]


def _weighed_by(module: nn.Module, product: Callable[..., mx.array], x: mx.array) -> mx.array:
    return weighed(product, module, x)


def _norm(norm: Callable[..., mx.array], x: mx.array, *scales: Any, **settings: Any) -> mx.array:
    # Its gradient stays MLX's: on a CPU, one of our own would be added up in another order.
    given = [a for a in scales if isinstance(a, mx.array)]

    def compute(x: mx.array, *given: mx.array) -> mx.array:
        left = iter(given)
        return norm(x, *(next(left) if isinstance(a, mx.array) else a for a in scales), **settings)

    value = norm(x, *scales, **settings)
    # In a trace: on itself as well, as what lies between is kept.
    return mx.depends([value], [value, x])[0] if own_gradient.plain else _noted(value, _Made(compute, (x, *given)))


def _noted(value: mx.array, made: "_Made") -> mx.array:
    if _made is not None:
        _made[id(value)] = value, made
    return value


def _made_of(x: mx.array) -> "_Made | None":
    return None if _made is None or id(x) not in _made else _made[id(x)][1]


class _Made:
    """How a value is made once more."""

    def __init__(self, function: Callable[..., mx.array], arrays: Sequence[mx.array]):
        self._compute = lambda *arrays: [function(*arrays)]
        self._arrays, self._made = list(arrays), [_made_of(a) for a in arrays]
        self._arrays_again: list[mx.array] = []
        self._again: mx.array | None = None

    def value(self) -> mx.array:
        """It, for the first time."""
        function = mx.custom_function(self._compute)
        function.vjp(self._gradient)
        values: Any = function(*self._arrays)
        return values[0]

    def again(self, cotangents: Sequence[mx.array]) -> mx.array:
        """It, once the gradient has come as far as ``cotangents``; for all who ask, the same."""
        if self._again is None:
            (self._again,) = self._compute(*self._from(cotangents))
        return self._again

    def _from(self, cotangents: Sequence[mx.array]) -> list[mx.array]:
        if not self._arrays_again:
            of_others = [
                array if made is None else made.again(cotangents)
                for array, made in zip(self._arrays, self._made, strict=True)
            ]
            # Without a dependency it would be computed early, and kept: compiled, it is the first one.
            self._arrays_again = mx.depends(of_others, list(cotangents))
        return self._arrays_again

    def _gradient(self, primals: Any, cotangents: Any, outputs: Any) -> list[mx.array]:
        return mx.vjp(self._compute, self._from(cotangents), list(cotangents))[1]
