"""A norm over each head."""

from typing import Any

from lmxexp.interfaces import Factory


def per_head(head_dim: int, n_heads: int, norm: Factory) -> Any:
    """A norm over each head's query or key by itself, one scale for all heads.

    Args:
        head_dim: width of a head.
        n_heads: not used.
        norm: factory of the norm.

    Shapes:
        The norm is applied to ``(B, L, H, C)``.

    Source: Henry et al. 2020, "Query-Key Normalization for Transformers"; Dehghani et al. 2023, "Scaling Vision
        Transformers to 22 Billion Parameters".
    """
    return norm(head_dim)
