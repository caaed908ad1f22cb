"""Linear layers of one input as one product, where that is faster: in training, on CUDA.

There a product of a few hundred columns costs as much as one of twice as many, and the gradients of an input that
several layers share are each written, read and added up. What takes the joined product has to take it as it lies:
splitting it would cost what is saved. So each use has a kernel of its own, `lmxexp.ops.rope.turned_heads` and
`lmxexp.ops.gated.silu_gated_halves`.

A module that computes some of its layers so names them in ``of_one_input``. In mixed precision their weights are then
cast into one array (`cast_for`), instead of each by itself and then copied together.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from lmxexp.ops import cuda
from lmxexp.ops.linear import is_in_rows, product
from lmxexp.ops.own_gradient import own_gradient
from lmxexp.ops.trees import by_path
from lmxexp.train import precision

_cast: dict[tuple[int, ...], mx.array] = {}
"""Within `cast_for`, the weights that lie in one array already, by the ids of their layers."""


def can_be_joined(x: mx.array, *layers: nn.Module) -> bool:
    """Whether layers of one input ``x`` are to be computed as one product now.

    They are if a gradient is traced for CUDA (`lmxexp.ops.linear.gradients_in_rows`), unless it is mapped or what the
    layers are given is made once more for it; and if all of them are ``nn.Linear`` itself, without a bias.
    """
    return (
        is_in_rows()
        and cuda.usable()
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
    weights = [layer.weight for layer in layers]
    whole = _cast.get(tuple(map(id, layers)))
    return product(x, cast(mx.array, _joined(*weights) if whole is None else _lying_joined(whole, *weights)))


def side_by_side(x: mx.array, layers: Sequence[nn.Module]) -> mx.array:
    """The layers' outputs side by side, on every device; as one product where they `can_be_joined`.

    Shapes:
        as of `joined_product`.
    """
    if can_be_joined(x, *layers):
        return joined_product(x, layers)
    return mx.concatenate([layer(x) for layer in layers], axis=-1)


@contextmanager
def cast_for(model: nn.Module, params: Any, dtype: mx.Dtype | None) -> Iterator[Any]:
    """`lmxexp.train.precision.cast` of the tree ``params`` of the model's parameters.

    Weights of layers ``of_one_input`` are parts of one array on CUDA, which `joined_product` finds within.
    """
    global _cast
    parts: dict[str, mx.array] = {}
    before, _cast = _cast, {}
    try:
        if dtype is not None and cuda.usable():
            leaves = by_path(params)
            for path, module in model.named_modules():
                names = getattr(type(module), "of_one_input", ())
                layers = [getattr(module, name, None) for name in names]
                paths = [f"{path}.{name}.weight".lstrip(".") for name in names]
                weights = [leaves[path] for path in paths if path in leaves]
                if layers and len(weights) == len(layers) and _takes(weights, layers, dtype):
                    whole = _run(weights, dtype)
                    parts |= zip(paths, _split(whole, weights), strict=True)
                    _cast[tuple(map(id, layers))] = whole
        # What is cast once more here is used by nobody, and not computed.
        yield tree_map_with_path(lambda path, a: parts.get(path, a), precision.cast(params, dtype))
    finally:
        _cast = before


def _takes(weights: Sequence[mx.array], layers: Sequence[Any], dtype: mx.Dtype) -> bool:
    return all(
        type(layer) is nn.Linear
        and weight.dtype == mx.float32
        and all(n % cuda.per_pack(dtype) == 0 for n in weight.shape)
        for weight, layer in zip(weights, layers, strict=True)
    )


def _run(weights: Sequence[mx.array], dtype: mx.Dtype) -> mx.array:
    """``(O_i, D)`` each, to ``(O, D)`` in a type."""
    ends = list(accumulate(w.size // cuda.per_pack(dtype) for w in weights))
    return _kernel(len(weights))(
        *weights,
        numbers=ends,
        blocks=-(-ends[-1] // cuda.BLOCK),
        typed=dtype,
        shapes=[(sum(w.shape[0] for w in weights), weights[0].shape[1])],
        dtypes=[dtype],
    )[0]


def _split(whole: mx.array, weights: Sequence[mx.array]) -> list[mx.array]:
    """Each weight's part; each in rows, nothing is copied."""
    return list(mx.split(whole, list(accumulate(w.shape[0] for w in weights[:-1]))))


@own_gradient
def _joined(*weights: mx.array) -> mx.array:
    """``(O_i, D)`` each, to ``(O, D)``."""
    return _run(weights, weights[0].dtype)


@_joined.vjp
def _parted(primals, cotangent, output):
    return _split(cotangent, primals)


@own_gradient
def _lying_joined(whole: mx.array, *weights: mx.array) -> mx.array:
    """The same of weights that are parts of ``whole``."""
    return whole


@_lying_joined.vjp
def _parted_as_well(primals, cotangent, output):
    return [mx.zeros_like(primals[0]), *_split(cotangent, primals[1:])]  # the first is nobody's


@cache
def _kernel(n: int) -> cuda.Kernel:
    return cuda.Kernel(
        f"joined_{n}",
        [f"x{i}" for i in range(n)],
        ["joined"],
        f"""
        constexpr int W = Pack<T>::size;
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i >= end{n - 1}) return;
        const auto* x = x0;
        int begin = 0;
        """
        + "".join(f"if (i >= end{k}) {{ x = x{k + 1}; begin = end{k}; }}\n" for k in range(n - 1))
        + """
        store_pack(joined + static_cast<long long>(i) * W, load_pack_as<T>(x + static_cast<long long>(i - begin) * W));
        """,
        numbers={f"end{k}": "int" for k in range(n)},  # in packs
    )
