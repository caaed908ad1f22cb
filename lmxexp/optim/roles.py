"""What a parameter is, told by its name and shape."""

from typing import Literal

import mlx.core as mx


def role_of(path: str, parameter: mx.array) -> Literal["embedding", "head", "matrix", "vector"]:
    """What a parameter is for: ``embedding`` (a tied one is the head as well), ``head``, ``matrix`` (any other: those
    between the layers' inputs and outputs) or ``vector`` (all that is no matrix: norms, biases, decays)."""
    if not is_matrix(path, parameter):
        return "vector"
    if is_hidden_matrix(path, parameter):
        return "matrix"
    return "head" if "lm_head" in path else "embedding"


def is_matrix(path: str, parameter: mx.array) -> bool:
    """Whether the parameter multiplies vectors: the weight of a linear layer, an embedding, a stack of matrices
    (experts), or a convolution that mixes channels.

    Biases, norms, decays and the like are not, whatever their shape (the biases of experts have two axes, and so has
    Mamba's ``A_log``), nor is a convolution of each channel alone, ``(channels, width)``.
    """
    *_, module, name = ["", *path.split(".")]
    return name == "weight" and parameter.ndim >= 2 and not (parameter.ndim == 2 and module.startswith("conv"))


def is_hidden_matrix(path: str, parameter: mx.array) -> bool:
    """Whether it is a matrix and neither an embedding nor the head."""
    return is_matrix(path, parameter) and "embed" not in path and "lm_head" not in path


def is_stack(path: str, parameter: mx.array) -> bool:
    """Whether a weight of more than two axes is a stack of matrices rather than a convolution."""
    return parameter.ndim > 2 and "conv" not in path
