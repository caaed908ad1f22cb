"""Random numbers of a rank's rows: those that the rows have when one process computes all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx

from lmxexp.ops.replaced import replaced


@contextmanager
def rows_of(rank: int, size: int) -> Iterator[None]:
    """Within, what is drawn without a key of its own is drawn for the rows of all ranks, the first axis, and a rank
    gets its own: dropout of a sample does not depend on how many share the batch, nor does the random state.

    The price is that each rank draws all ranks' numbers.
    """

    def own(draw: Callable[..., mx.array], shape: Any, key: Any, *parameters: Any) -> mx.array:
        shape = tuple(shape)
        if key is not None or not shape:
            return draw(shape, *parameters)
        n = shape[0]
        # A parameter with a row for each sample is known of this rank's alone; what others would draw is not looked at.
        of_all = [mx.concatenate([p] * size) if _has_rows(p, shape) else p for p in parameters]
        return draw((size * n, *shape[1:]), *of_all)[rank * n : (rank + 1) * n]

    bernoulli, uniform, normal = mx.random.bernoulli, mx.random.uniform, mx.random.normal

    def own_bernoulli(p: Any = 0.5, shape: Any = None, key: Any = None, **rest: Any) -> mx.array:
        shape = mx.array(p).shape if shape is None else shape
        return own(lambda s, p: bernoulli(p, s, key, **rest), shape, key, p)

    def own_uniform(
        low: Any = 0, high: Any = 1, shape: Any = (), dtype: Any = mx.float32, key: Any = None, **rest: Any
    ) -> mx.array:
        return own(lambda s, low, high: uniform(low, high, s, dtype, key, **rest), shape, key, low, high)

    def own_normal(
        shape: Any = (), dtype: Any = mx.float32, loc: Any = None, scale: Any = None, key: Any = None, **rest: Any
    ) -> mx.array:
        return own(lambda s, loc, scale: normal(s, dtype, loc, scale, key, **rest), shape, key, loc, scale)

    with ExitStack() as stack:
        stack.enter_context(replaced(mx.random, "bernoulli", own_bernoulli))
        stack.enter_context(replaced(mx.random, "uniform", own_uniform))
        stack.enter_context(replaced(mx.random, "normal", own_normal))
        yield


def _has_rows(parameter: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(parameter, mx.array) and parameter.ndim == len(shape) and parameter.shape[0] == shape[0] > 1
