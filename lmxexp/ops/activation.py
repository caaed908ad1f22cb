"""Activation functions by name."""

from collections.abc import Callable
from typing import Literal

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops.exp import silu
from lmxexp.ops.gelu import gelu, gelu_tanh

Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]

_BY_NAME: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": gelu,  # exact
    "gelu_tanh": gelu_tanh,
    "relu": nn.relu,
    "relu2": nn.relu2,  # So et al. 2021, "Primer"
    "silu": silu,
}


def activation(name: str) -> Callable[[mx.array], mx.array]:
    """The elementwise function of that name."""
    if name not in _BY_NAME:
        raise ValueError(f"activation={name}: there are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
