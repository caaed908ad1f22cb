"""In which type parameters are kept and products computed."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

DTYPES = {"fp32": mx.float32, "bf16": mx.bfloat16, "mixed": mx.bfloat16}


def resolve(precision: str, *, on_gpu: bool) -> str:
    """``auto`` becomes mixed on a GPU and fp32 on a CPU, where bf16 products are 20 times slower than fp32."""
    if precision == "auto":
        return "mixed" if on_gpu else "fp32"
    return precision


def compute_dtype(precision: str) -> mx.Dtype | None:
    """What parameters are cast to for forward and backward; None: they are in the type already.

    Args:
        precision: resolved.
    """
    return DTYPES[precision] if precision == "mixed" else None


def cast(tree: Any, dtype: mx.Dtype | None) -> Any:
    """The tree with its floating-point leaves in ``dtype``; None: as they are, see `compute_dtype`."""
    if dtype is None:
        return tree
    return tree_map(lambda a: a.astype(dtype) if mx.issubdtype(a.dtype, mx.floating) else a, tree)
