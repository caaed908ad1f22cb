"""A layer whose inner arrays are not kept for the gradient but computed once more."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from lmxexp.interfaces import Aux, Shared
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
    STATE[0][:] = outputs["key"]
    if shared is not None:
        shared.update(outputs["shared"])
    return outputs["y"], outputs["aux"]
