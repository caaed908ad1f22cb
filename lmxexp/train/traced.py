"""How a gradient is traced, wherever one is: in the training step, and where its parts or its speed are measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.joined import cast_for
from lmxexp.ops.linear import gradients_in_rows
from lmxexp.ops.rms_norm import sums_with_norms


@contextmanager
def for_training(model: nn.Module, params: Any, dtype: mx.Dtype | None) -> Iterator[Any]:
    """Within, what modules compute is laid out for a gradient that an optimizer reads.

    Numbers are those of without, but for the order in which some are added up on CUDA. It is around the gradient, not
    the forward pass alone, as ``train.remat`` computes layers once more there.

    Args:
        model: whose modules ``params`` belong to.
        params: a tree of the model's parameters, or of some.
        dtype: that they are computed in; None: as they are.

    Yields:
        The tree in that type. The gradients wanted are those of its leaves.
    """
    with cast_for(model, params, dtype) as used, gradients_in_rows(), sums_with_norms():
        yield used
