"""Muon: a momentum made orthogonal, for hidden matrices; AdamW for everything else."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx
from mlx.optimizers import MultiOptimizer
from mlx.utils import tree_flatten, tree_unflatten

from lmxexp.interfaces import ConfigError, OptimizerFactory, Schedule
from lmxexp.optim.checks import check_fraction
from lmxexp.optim.full_precision import FullPrecision, zeros
from lmxexp.optim.roles import is_hidden_matrix, is_stack

Precision = Literal["auto", "bf16", "fp32"]
Scale = Literal["spectral", "match_rms_adamw"]


def orthogonalize(matrix: mx.array, steps: int, dtype: mx.Dtype) -> mx.array:
    """A matrix with the same singular vectors and singular values near 1 (0.7 to 1.2).

    Five products with the matrix itself do roughly what a singular value decomposition would. The polynomial is the
    published one: steep at 0, so that small singular values rise fast, and not settled at 1.

    Args:
        matrix: Or a stack of matrices.
        steps: Iterations of Newton and Schulz.
        dtype: Of the products. The norm before them is fp32 always.

    Shapes: ``(..., rows, columns)`` to the same, fp32.

    Source: K. Jordan et al., 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = mx.swapaxes(matrix, -1, -2) if tall else matrix  # the smaller of the two Gram matrices
    norm = mx.sqrt(mx.square(x).sum(axis=(-2, -1), keepdims=True))
    x = (x / (norm + 1e-7)).astype(dtype)
    for _ in range(steps):
        gram = x @ mx.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    x = x.astype(mx.float32)
    return mx.swapaxes(x, -1, -2) if tall else x


class Muon(FullPrecision):
    """Nesterov momentum whose matrix is made orthogonal before it is applied; for hidden matrices only.

    Every direction of the update gets the same weight, not only the few strong ones. MLX's Muon adds the weight decay
    to the gradient, where the orthogonalisation destroys it; here it is decoupled, as published.

    Args:
        learning_rate: A number, or a callable from the step to a float32 scalar; with ``scale=spectral`` roughly the
            spectral norm of one change.
        momentum: How much of the running mean of gradients stays at each step, in [0, 1).
        nesterov: Look ahead by one step of momentum.
        ns_steps: Newton-Schulz iterations; 5 as published.
        ns_precision: Type of their products: ``bf16`` as published, ``fp32``, or ``auto``: bf16 on a GPU, fp32 on a
            CPU, where MLX's bf16 products are 20 times slower.
        scale: What the orthogonal matrix is multiplied by. ``spectral``: ``max(1, rows / columns)**0.5``, Jordan's.
            ``match_rms_adamw``: ``0.2 * max(rows, columns)**0.5``, Moonlight's, which takes AdamW's learning rate and
            weight decay as they are.
        weight_decay: Decoupled decay.
        stacked: What a weight of more than two axes is. False: a convolution, ``(out, everything else)`` as one
            matrix. True: a stack of matrices (experts), each made orthogonal alone.

    Raises:
        ConfigError: A setting is outside its range.

    Source: K. Jordan et al., 2024, Muon: An optimizer for hidden layers in neural networks,
        https://kellerjordan.github.io/posts/muon/; J. Liu et al., 2025, Muon is Scalable for LLM Training,
        https://arxiv.org/abs/2502.16982, equation 4 (``match_rms_adamw``). For a convolution ``rows / columns`` is
        that of the flattened matrix; Jordan's code takes the last two axes of the filter.
    """

    def __init__(
        self,
        learning_rate: float | Schedule,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "spectral",
        weight_decay: float = 0.01,
        stacked: bool = False,
    ):
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_fraction("momentum", momentum)
        self.nesterov = nesterov
        if ns_steps < 1:
            raise ConfigError(f"ns_steps={ns_steps} must be at least 1: 5 is the published number")
        self.ns_steps = ns_steps
        if ns_precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"ns_precision={ns_precision} is unknown: choose auto, bf16 or fp32")
        if ns_precision == "auto":
            ns_precision = "bf16" if mx.default_device().type == mx.DeviceType.gpu else "fp32"
        self.ns_dtype = mx.bfloat16 if ns_precision == "bf16" else mx.float32
        if scale not in ("spectral", "match_rms_adamw"):
            raise ConfigError(f"scale={scale} is unknown: choose spectral or match_rms_adamw")
        self.scale = scale
        self.stacked = stacked

    def moments(self, parameter: mx.array) -> dict[str, mx.array]:
        return {"m": zeros(parameter)}

    def change(self, gradient: mx.array, parameter: mx.array, state: dict[str, mx.array]) -> mx.array:
        assert gradient.ndim >= 2, "Muon is for matrices"
        new = gradient * (1 - self.momentum)
        state["m"] = state["m"] * self.momentum + new
        mean = state["m"] * self.momentum + new if self.nesterov else state["m"]
        matrix = mean if self.stacked else mean.reshape(mean.shape[0], -1)
        rows, columns = matrix.shape[-2:]
        if self.scale == "spectral":
            scale = max(1, rows / columns) ** 0.5
        else:
            scale = 0.2 * max(rows, columns) ** 0.5
        direction = orthogonalize(matrix, self.ns_steps, self.ns_dtype)
        return direction.reshape(gradient.shape) * (self.learning_rate * scale)


class MuonWithAdamW(MultiOptimizer):
    """Muon for hidden matrices, AdamW for embeddings, the head and vectors.

    Parameters are told apart by name and shape, see `lmxexp.optim.roles`. A weight of more than two axes is a
    convolution's if ``conv`` is in its path, else a stack of matrices.

    Args:
        learning_rate: Muon's: a number, or a callable from the step to a float32 scalar.
        adamw: Factory of the other optimizer, with a learning rate of its own.
        momentum, nesterov, ns_steps, ns_precision, scale, weight_decay: See `Muon`.

    Raises:
        ConfigError: A setting is outside its range.

    Source: See `Muon`.
    """

    group_names = ("muon", "muon", "adamw")

    def __init__(
        self,
        learning_rate: float | Schedule,
        adamw: OptimizerFactory,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_precision: Precision = "auto",
        scale: Scale = "spectral",
        weight_decay: float = 0.01,
    ):
        def muon(stacked: bool) -> Muon:
            return Muon(learning_rate, momentum, nesterov, ns_steps, ns_precision, scale, weight_decay, stacked)

        super().__init__(
            [muon(stacked=False), muon(stacked=True), adamw()],
            [
                lambda path, parameter: is_hidden_matrix(path, parameter) and not is_stack(path, parameter),
                is_hidden_matrix,
            ],
        )

    def apply_gradients(self, gradients: dict, parameters: dict) -> dict:
        # MLX puts the groups' trees together one after the other. A tree in another order than the gradients' would
        # make a compiled step that carries it along trace a second time.
        updated = dict(tree_flatten(super().apply_gradients(gradients, parameters)))
        return tree_unflatten([(path, updated[path]) for path, _ in tree_flatten(gradients)])
