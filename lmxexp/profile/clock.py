"""How long functions of arrays take, without what it costs to start them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx

from lmxexp.ops.trees import by_path
from lmxexp.profile.part import Part
from lmxexp.train.random_state import STATE

TOGETHER = 0.02
"""Seconds of work that the device is given at once."""
MOST = 64
"""Calls of a tiny part that are given at once."""
REPEATS, FEWEST = 5, 3
"""Measurements whose median counts: so many, or if one takes over a second so few."""


def seconds(work: Callable[[int], object], *, multiple: int = 1) -> float:
    """Of one call: the median over several times that many were made.

    Args:
        work: ``work(n)`` makes n calls and waits for them.
        multiple: n is one of it, for work that is not the same at every call.
    """
    work(multiple)  # compiles
    once = _time(work, multiple)
    n = multiple * max(1, min(MOST // multiple, math.ceil(TOGETHER / max(once, 1e-9))))
    repeats = FEWEST if once * n / multiple > 1.0 else REPEATS
    return statistics.median(_time(work, n) / n for _ in range(repeats))


class PartClock:
    """Times parts of a model, forward and backward.

    A part that takes ten microseconds on a GPU takes fifty to be started and waited for. So several calls are one graph
    and evaluated at once. They form a chain, each call waiting for all that the one before has computed: calls that do
    not depend on each other would run side by side, which layers of a model do not. A link of the chain is a sum of
    the input and a zero made of the outputs, as costly as a residual connection. It stands outside the compiled
    function, so that it is fused into no part, is timed by itself, and is taken off.

    Args:
        dtype: what parameters are cast to; None: they stay.
        compile: whether parts are compiled, as the training step is.
    """

    def __init__(self, dtype: mx.Dtype | None, *, compile: bool):
        self._dtype, self._compile = dtype, compile
        self._links: dict[tuple[Any, ...], float] = {}

    def __call__(self, part: Part) -> tuple[float, float]:
        """Seconds of one forward pass, and of one backward pass: that of both, less the first."""
        outputs = part.outputs(part.params, part.x, part.others, self._dtype)
        # As a gradient has them: with ones some products would be simpler than they are.
        cotangents = [(mx.random.normal(y.shape) if y.ndim else mx.ones(())).astype(y.dtype) for y in outputs]
        mx.eval(cotangents)
        del outputs
        forward = self._chained(
            lambda x, params, others: part.outputs(params, x, others, self._dtype), part.x, part.params, part.others
        )
        both = self._chained(
            lambda x, params, others, back: part.gradients(params, x, others, back, self._dtype),
            *(part.x, part.params, part.others, cotangents),
        )
        return max(forward - self._link(part.x), 0.0), max(both - forward, 0.0)

    def _link(self, x: mx.array) -> float:
        key = (x.shape, x.dtype)
        if key not in self._links:
            self._links[key] = self._chained(lambda x: [x], x)
        return self._links[key]

    def _chained(self, function: Callable[..., list[mx.array]], x: mx.array, *others: Any) -> float:
        linked = lambda x, *others: _zero(function(x, *others))
        if self._compile:  # with the random state, or dropout would be a constant
            linked = partial(mx.compile, inputs=[STATE], outputs=[STATE])(linked)

        def work(n: int) -> None:
            zero = mx.array(0.0)
            for _ in range(n):
                zero = linked(x + zero.astype(x.dtype), *others)
            mx.eval(zero)

        return seconds(work)


def _zero(outputs: list[mx.array]) -> mx.array:
    """Zero, which cannot be known before all outputs are: no compiler sees that no element is that number."""
    total = mx.array(0.0)
    for y in by_path(outputs).values():
        total = total + y[(0,) * y.ndim].astype(mx.float32)
    return (total == 1.2345e30).astype(mx.float32)


def _time(work: Callable[[int], object], n: int) -> float:
    start = time.perf_counter()
    work(n)
    return time.perf_counter() - start
