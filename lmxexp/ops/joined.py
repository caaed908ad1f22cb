"""Linear layers of one input as one product, where that is faster: in training, on CUDA.

There a product of a few hundred columns costs as much as one of twice as many, and the gradients of an input that
several layers share are each written, read and added up. What takes the joined product has to take it as it lies:
splitting it would cost what is saved. So each use has a kernel of its own, `lmxexp.ops.rope.turned_heads` and
`lmxexp.ops.gated.silu_gated_halves`.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from lmxexp.ops import cuda
from lmxexp.ops.linear import is_in_rows, product
from lmxexp.ops.own_gradient import own_gradient


def can_be_joined(x: mx.array, *layers: nn.Module) -> bool:
    """Whether layers of one input ``x`` are to be computed as one product now.

    They are if a gradient is traced for CUDA (`lmxexp.ops.linear.gradients_in_rows`), unless it is mapped or what the
    layers are given is made once more for it; and if all of them are ``nn.Linear`` itself, without a bias.
    """
    return (
        cuda.usable()
        and is_in_rows()
        and all(
            type(layer) is nn.Linear
            and "bias" not in layer
            and layer.weight.dtype == x.dtype
            and all(n % cuda.per_pack(x.dtype) == 0 for n in layer.weight.shape)
            for layer in layers
        )
    )


def joined_product(x: mx.array, layers: Sequence[nn.Module]) -> mx.array:
    """The layers' outputs side by side.

    Args:
        layers: that `can_be_joined`.

    Shapes:
        ``(..., D)`` to ``(..., O)``, O the sum of the layers' widths.
    """
    return product(x, cast(mx.array, _joined(*(layer.weight for layer in layers))))


def side_by_side(x: mx.array, layers: Sequence[nn.Module]) -> mx.array:
    """The layers' outputs side by side, on every device; as one product where they `can_be_joined`.

    Shapes:
        as of `joined_product`.
    """
    if can_be_joined(x, *layers):
        return joined_product(x, layers)
    return mx.concatenate([layer(x) for layer in layers], axis=-1)


@own_gradient
def _joined(*weights: mx.array) -> mx.array:
    """``(O_i, D)`` each, to ``(O, D)``."""
    ends = list(accumulate(w.size // cuda.per_pack(w.dtype) for w in weights))
    height, width = sum(w.shape[0] for w in weights), weights[0].shape[1]
    return _kernel(len(weights))(
        *(*weights, mx.array(ends, mx.int64)),
        blocks=-(-ends[-1] // cuda.BLOCK),
        typed=weights[0].dtype,
        shapes=[(height, width)],
        dtypes=[weights[0].dtype],
    )[0]


@_joined.vjp
def _parted(primals, cotangent, output):
    return mx.split(cotangent, list(accumulate(w.shape[0] for w in primals[:-1])))  # each in rows, nothing is copied


@cache
def _kernel(n: int) -> cuda.Kernel:
    last = n - 1
    return cuda.Kernel(
        f"joined_{n}",
        [*(f"x{i}" for i in range(n)), "ends"],
        ["joined"],
        f"""
        constexpr int W = Pack<T>::size;
        const long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
        if (i >= ends[{last}]) return;
        const T* x = x0;
        long long begin = 0;
        """
        + "".join(f"if (i >= ends[{k}]) {{ x = x{k + 1}; begin = ends[{k}]; }}\n" for k in range(last))
        + """
        store_pack(joined + i * W, load_pack(x + (i - begin) * W));
        """,
    )
