"""Functions with a gradient of their own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from lmxexp.ops import cuda


class _Plain(threading.local):
    """Whether this thread is within `without_own_gradients`: another may be tracing a gradient meanwhile."""

    on = False

    def __bool__(self) -> bool:
        return self.on


class own_gradient:
    """As ``mx.custom_function``, but what it decorates can be traced.

    ``mx.export_function`` knows no such functions; within `without_own_gradients` they are plain functions, with the
    gradient that MLX would give them. As such they cost the host less, which is what decoding waits for.

    Args:
        function: of arrays, to an array or several.
    """

    plain = _Plain()

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._with_gradient = mx.custom_function(function)

    def vjp(self, gradient: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates ``gradient(primals, cotangents, outputs)``."""
        self._with_gradient.vjp(gradient)
        return gradient

    def vmap(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Decorates ``rule(inputs, axes)``."""

        def replaced(inputs: Any, axes: Any) -> Any:
            with cuda.under_vmap(False):
                return rule(inputs, axes)

        self._with_gradient.vmap(replaced)
        return rule

    def takes_leading_axes(self) -> None:
        """The rule of a function whose arrays may all have more axes in front: what is mapped over is one of them."""
        self.joined(lambda n, *own: self(*own))

    def joined(self, join: Callable[..., Any]) -> None:
        """A rule for ``mx.vmap``: ``join(n, *inputs)`` of inputs that all have an axis of the ``n`` members in front
        gives outputs that have."""

        def rule(inputs: Any, axes: Any) -> Any:
            if not isinstance(axes, list | tuple):  # one input comes bare
                inputs, axes = [inputs], [axes]
            n = next(x.shape[axis] for x, axis in zip(inputs, axes, strict=True) if axis is not None)
            own = [
                mx.broadcast_to(x, (n, *x.shape)) if axis is None else mx.moveaxis(x, axis, 0)
                for x, axis in zip(inputs, axes, strict=True)
            ]
            outputs = join(n, *own)
            return (list(outputs), [0] * len(outputs)) if isinstance(outputs, list | tuple) else (outputs, 0)

        self.vmap(rule)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args) if own_gradient.plain else self._with_gradient(*args)


@contextmanager
def without_own_gradients() -> Iterator[None]:
    """Within, nothing has a gradient of its own."""
    plain = own_gradient.plain
    before, plain.on = plain.on, True
    try:
        yield
    finally:
        plain.on = before
