"""Trees of arrays by path, and arrays as numbers: MLX's own, with types that say what comes out."""

from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten


def by_path(tree: Any) -> dict[str, mx.array]:
    """The leaves of a tree of arrays, named by their path: ``layers.0.self_attn.q_proj.weight``."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def number(scalar: mx.array) -> float:
    """The value of an array of one real element; evaluates it."""
    return float(cast(float, scalar.item()))
