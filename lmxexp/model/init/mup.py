"""Maximal update parametrisation: hyperparameters of a small model that hold for wide, and deep, ones."""

import math

import mlx.core as mx
import mlx.nn as nn

from lmxexp.interfaces import ConfigError
from lmxexp.model.init.gpt2 import Gpt2Init
from lmxexp.model.init.law import Matrix, NormalLaw, positive
from lmxexp.model.language_model import LanguageModel
from lmxexp.optim.roles import role_of


class MuPInit(NormalLaw):
    """At ``base_width`` the standard parametrisation with GPT-2's initialisation; at any other width, and with
    ``base_depth`` at any other depth, starting values and learning rates such that every activation, and what a step
    changes of it, keeps its size. So the best learning rate of the base model is about that of the large one.

    With ``m = width / base_width`` and ``n = depth / base_depth``:

    ================================  ==================  ==================
    parameter                         standard deviation  learning rate
    ================================  ==================  ==================
    embedding                         std                 1
    hidden matrices                   std / sqrt(m)       1 / m
    those that write to the stream    times 1 / n         times 1 / n
    untied head                       std                 1
    final norm's weight               1 / m               1 / m
    other vectors                     as they are         1
    ================================  ==================  ==================

    The multipliers that the papers put on the logits and on the residual branches are absorbed: the logits' by the
    weight of the norm before the head, the branches' by the matrices that write to the residual stream. With Adam that
    is the same; weight decay stays what ``learning_rate * weight_decay`` says without these factors, which is the
    papers' rule as well. Scores of softmax attention are scaled by ``sqrt(base_head_dim) / head_dim``.

    Learning rates are those of optimizers that move each element by about the learning rate (Adam, AdamW, Lion, …), and
    for Muon's matrices, whose change of spectral norm ``learning_rate`` needs no factor for the width, that of the
    depth. Other optimizers are refused.

    Args:
        width: of the model, D.
        depth: its number of layers.
        base_width: where the hyperparameters were tuned.
        base_depth: likewise; None: depth has no part in it (muP), else CompleteP, whose branches are ``1 / n``.
        base_head_dim: of an attention head there; None: the same as here.
        std: of matrices at the base width.

    Raises:
        ConfigError: a number that is not positive, or a model whose last norm has no weight.

    Source: G. Yang et al., 2022, Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer,
        https://arxiv.org/abs/2203.03466, table 8; N. Dey et al., 2025, Don't be lazy: CompleteP enables
        compute-efficient deep transformers, https://arxiv.org/abs/2505.01618, table 1 (without its rule for epsilon).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        base_width: int = 128,
        base_depth: int | None = None,
        base_head_dim: int | None = None,
        std: float = 0.02,
    ):
        for key, value in {"base_width": base_width, "base_depth": base_depth, "base_head_dim": base_head_dim}.items():
            if value is not None and value < 1:
                raise ConfigError(f"model.init.{key}={value} must be at least 1")
        self.std = positive("std", std)
        self.base_head_dim = base_head_dim
        self.width_ratio = width / base_width
        self.depth_ratio = 1.0 if base_depth is None else depth / base_depth
        self._base_depth = depth if base_depth is None else base_depth

    def std_of(self, path: str, module: Matrix, n_layers: int) -> float:
        if isinstance(module, nn.Embedding) or "lm_head" in path:
            return self.std
        std = self.std / math.sqrt(self.width_ratio)
        if path.endswith(Gpt2Init.residual_outputs):
            std /= math.sqrt(2 * self._base_depth) * self.depth_ratio
        return std

    def __call__(self, model: LanguageModel, key: mx.array) -> None:
        super().__call__(model, key)
        if "weight" not in model.norm or not mx.all(model.norm.weight == 1).item():
            raise ConfigError(
                "init=mup scales the logits by the weight of the norm before the head, which here has none that starts "
                "at 1: choose norm=rmsnorm or norm=layernorm"
            )
        model.norm.weight = model.norm.weight / self.width_ratio
        if "bias" in model.norm:
            model.norm.bias = model.norm.bias / self.width_ratio
        if self.base_head_dim is not None:
            for mixer in model.mixers():
                if isinstance(getattr(mixer, "scale", None), float) and hasattr(mixer, "head_dim"):
                    mixer.scale *= math.sqrt(self.base_head_dim / mixer.head_dim)

    def rate_factor(self, path: str, parameter: mx.array, *, spectral: bool = False) -> float:
        """What a parameter's learning rate is multiplied by.

        Args:
            spectral: for an optimizer whose changes have a given spectral norm.
        """
        module, _, _ = path.rpartition(".")
        if module == "norm":  # the one before the head
            return 1 / self.width_ratio
        factor = 1.0
        if role_of(path, parameter) == "matrix" and not spectral:
            factor /= self.width_ratio
        if f"{module}.weight".endswith(Gpt2Init.residual_outputs):
            factor /= self.depth_ratio
        return factor
