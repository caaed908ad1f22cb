"""What initialisation laws share: visiting every matrix with a random key of its own."""

import zlib
from abc import ABC, abstractmethod

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from lmxexp.interfaces import ConfigError
from lmxexp.model.ffn.experts import ExpertLinear
from lmxexp.model.language_model import LanguageModel

Matrix = nn.Linear | nn.Embedding | ExpertLinear
"""What has a ``weight`` of matrices, inputs along the last axis."""


class NormalLaw(ABC):
    """Normal weights whose standard deviation a subclass chooses, biases zero.

    Linear layers, stacks of them in experts too, and embeddings are drawn anew; every other parameter (norms, gates,
    decays) keeps the value that its own module gave it. A matrix's key comes from its path, so two designs at one seed
    start with equal weights wherever they have the same parts.
    """

    @abstractmethod
    def std_of(self, path: str, module: Matrix, n_layers: int) -> float:
        """Standard deviation of the weight at ``path``, such as ``layers.0.self_attn.o_proj.weight``."""

    def __call__(self, model: LanguageModel, key: mx.array) -> None:
        n_layers = len(model.layers)
        for name, module in model.named_modules():
            if isinstance(module, Matrix):
                path = f"{name}.weight"
                std = self.std_of(path, module, n_layers)
                module.weight = std * mx.random.normal(module.weight.shape, module.weight.dtype, key=_fold(key, path))
                if "bias" in module:
                    module.bias = mx.zeros_like(module["bias"])


def positive(key: str, value: float) -> float:
    """The value, if a standard deviation can be it."""
    if value <= 0:
        raise ConfigError(f"model.init.{key}={value} must be positive")
    return value


def _fold(key: mx.array, path: str) -> mx.array:
    words = np.random.SeedSequence([*np.array(key).tolist(), zlib.crc32(path.encode())]).generate_state(2)
    return mx.array(words)
