"""Scalars that are computed once, not once per element."""

import mlx.core as mx


def once(scalar: mx.array) -> mx.array:
    """The scalar itself, or each of several, kept apart from what uses it.

    `mx.compile` fuses elementwise operations into the kernels of what they are multiplied with, scalars included: a
    learning rate by a cosine would be computed anew for every element of every parameter (an AdamW update of 3M
    parameters on two CPU cores: 83 ms, instead of 15). A sum over the one element is no elementwise operation.
    """
    return mx.sum(mx.expand_dims(scalar, -1), axis=-1)
