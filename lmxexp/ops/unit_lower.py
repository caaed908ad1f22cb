"""The inverse of a triangular matrix with ones on its diagonal."""

import mlx.core as mx

from lmxexp.ops.chunks import power_of_two

# Up to this size all blocks of a level are multiplied as one masked matrix: products of smaller ones are slower.
_BASE = 16


def unit_lower_inverse(a: mx.array) -> mx.array:
    """``(I + A)^-1``, A being the part of ``a`` strictly below the diagonal.

    By blocks, twice as wide at every level: the inverse of ``[[1 + A1, 0], [X, 1 + A2]]`` is
    ``[[T1, 0], [-T2 X T1, T2]]``. Backward stable like forward substitution, in ``log2(n)`` levels of batched products.
    (The Neumann product ``(1 - A)(1 + A^2)(1 + A^4)...`` is as parallel, but its powers grow like binomials where keys
    are alike, and cancel: no digit is left at n = 64.)

    Shapes:
        ``(..., n, n)`` to the same.

    Cost:
        `unit_lower_flops`.

    Source: Golub & Van Loan, "Matrix Computations", section 3.1; Yang et al. 2024, "Parallelizing Linear Transformers
        with the Delta Rule over Sequence Length", section 3.2, needs it.
    """
    n = a.shape[-1]
    size = power_of_two(n)
    if size > n:
        a = mx.pad(a, [(0, 0)] * (a.ndim - 2) + [(0, size - n)] * 2)
    return _invert(a)[..., :n, :n]


def _invert(a: mx.array) -> mx.array:
    n = a.shape[-1]
    if n <= _BASE:
        return _invert_small(a)
    half = n // 2
    inverse = _invert(mx.stack([a[..., :half, :half], a[..., half:, half:]], axis=-3))
    first, second = inverse[..., 0, :, :], inverse[..., 1, :, :]
    corner = -(second @ a[..., half:, :half] @ first)
    top = mx.concatenate([first, mx.zeros_like(first)], axis=-1)
    return mx.concatenate([top, mx.concatenate([corner, second], axis=-1)], axis=-2)


def _invert_small(a: mx.array) -> mx.array:
    n = a.shape[-1]
    i = mx.arange(n)
    inverse = mx.eye(n)
    width = 1
    while width < n:
        block = i // width
        # Rows in the second block of a pair, columns in the first.
        corners = mx.where((block[:, None] == block[None] + 1) & (block[:, None] % 2 == 1), a, 0.0)
        # The inverse of blocks of one is one.
        inverse = inverse - (corners if width == 1 else inverse @ corners @ inverse)
        width *= 2
    return inverse


def unit_lower_flops(n: int) -> int:
    """FLOPs of one `unit_lower_inverse`."""
    n = power_of_two(n)
    if n <= _BASE:
        return 4 * n**3 * max(n.bit_length() - 2, 0)
    return 2 * unit_lower_flops(n // 2) + 4 * (n // 2) ** 3
