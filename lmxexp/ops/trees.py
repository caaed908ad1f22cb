"""Trees of arrays by path, and arrays as numbers: MLX's own, with types that say what comes out."""

from collections.abc import Mapping
from typing import Any, cast

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten


def by_path(tree: Any) -> dict[str, mx.array]:
    """The leaves of a tree of arrays, named by their path: ``layers.0.self_attn.q_proj.weight``."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def in_order_of(tree: dict, other: Any) -> dict:
    """The leaves of ``other`` in the order of ``tree``.

    `MultiOptimizer` puts its groups' trees together one after the other. A tree in another order than the gradients'
    would make a compiled step that carries it along trace a second time.
    """
    leaves = by_path(other)
    return cast(dict, tree_unflatten([(path, leaves[path]) for path in by_path(tree)]))


def number(scalar: mx.array) -> float:
    """The value of an array of one real element; evaluates it."""
    return float(cast(float, scalar.item()))


def numbers(values: Mapping[str, mx.array]) -> dict[str, float]:
    """Scalars as floats by name; a vector's elements as ``name/0``, ``name/1``, …"""
    flat: dict[str, float] = {}
    for name, value in values.items():
        if value.ndim == 0:
            flat[name] = number(value)
        else:
            flat |= {f"{name}/{i}": x for i, x in enumerate(cast("list[float]", value.tolist()))}
    return flat
