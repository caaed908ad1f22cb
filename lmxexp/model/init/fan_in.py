"""Variance-preserving initialisation."""

import mlx.nn as nn

from lmxexp.model.init.law import Matrix, NormalLaw, positive


class FanInInit(NormalLaw):
    """Linear layers normal with ``gain / sqrt(inputs)``, so that outputs vary as much as inputs do.

    Args:
        gain: factor on the standard deviation.
        embedding_std: of embeddings, whose inputs are one-hot.

    Source: LeCun et al. 1998, "Efficient BackProp", section 4.6.
    """

    def __init__(self, gain: float = 1.0, embedding_std: float = 0.02):
        self.gain = positive("gain", gain)
        self.embedding_std = positive("embedding_std", embedding_std)

    def std_of(self, path: str, module: Matrix, n_layers: int) -> float:
        if isinstance(module, nn.Embedding):
            return self.embedding_std
        return self.gain * module.weight.shape[-1] ** -0.5
