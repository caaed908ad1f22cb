"""MLX's fused operations, kept whole under ``mx.vmap``.

``mx.vmap`` takes ``mx.fast``'s operations apart into the plain ones that they stand for, and knows ``mx.gather_mm`` not
at all. Here each has a rule that folds what is mapped over (the members of a population) into an axis that the kernel
has anyway, so that all members are one call of it. Arguments are MLX's; any array may be mapped over, along any axis.

The models go on calling MLX. Within `mapped`, what they find under MLX's names are the functions below; so do
``mlx.nn`` and a user's own classes. Outside, nothing is wrapped: differentiated without being mapped, an
``mx.custom_function`` computes its forward pass twice, and ``mx.export_function`` cannot trace it.

Map the forward pass and differentiate the sum of the members' losses. The other way round, ``mx.vmap(mx.grad(f))``
gives the same numbers but takes the gradients' kernels apart.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, reduce
from typing import Any

import mlx.core as mx

from lmxexp.ops import cuda

_Pair = tuple[Any, bool]
"""An array or None, and whether each member has one of its own: then they lie along axis 0."""

_Settings = tuple[tuple[str, Any], ...]

_taken: dict[str, Callable[..., Any]] = {}
"""What stood under MLX's names when `mapped` was entered; empty outside."""


@contextmanager
def mapped() -> Iterator[None]:
    """Within, the functions of this module stand under MLX's names.

    ``with mapped(): losses = mx.vmap(loss)(parameters, batches)`` belongs into the function that is differentiated and
    compiled: the trace has to lie within, not what runs it.
    """
    if _taken:
        yield
        return
    places = {
        (mx.fast, "scaled_dot_product_attention"): attention,
        (mx.fast, "rope"): rope,
        (mx.fast, "rms_norm"): rms_norm,
        (mx.fast, "layer_norm"): layer_norm,
        (mx, "gather_mm"): gather_mm,
    }
    _taken.update({name: getattr(module, name) for module, name in places})
    try:
        for (module, name), function in places.items():
            setattr(module, name, function)
        with cuda.under_vmap(True):
            yield
    finally:
        for module, name in places:
            setattr(module, name, _taken[name])
        _taken.clear()


def is_mapped() -> bool:
    """Whether what is traced now is within `mapped`."""
    return bool(_taken)


def attention(q: mx.array, k: mx.array, v: mx.array, *, mask: Any = None, sinks: Any = None, **rest: Any) -> mx.array:
    """``mx.fast.scaled_dot_product_attention``: the members join the batch.

    If they have sinks of their own, which the kernel tells apart by head alone, they join the heads. A mask of each
    member is repeated along the batch if it was the same for all of it.

    Args:
        mask: None, "causal", or boolean or additive.

    Shapes:
        q ``(B, H, L, C)``, k ``(B, K, S, C)``, v ``(B, K, S, M)``, mask any that broadcasts to ``(B, H, L, S)``, sinks
        ``(H,)``; returns ``(B, H, L, M)``.
    """
    mode, array = (mask, None) if isinstance(mask, str) else (None, mask)
    return _attention(mode, tuple(rest.items()))(q, k, v, array, sinks)


def rope(x: mx.array, dims: int, *, offset: int | mx.array, freqs: Any = None, **settings: Any) -> mx.array:
    """``mx.fast.rope``: the members join the batch. With frequencies of their own, of which the kernel takes one set,
    each is a call.

    Shapes:
        x ``(B, ..., T, D)``, offset a scalar or ``(B,)``, freqs ``(dims / 2,)``; returns the shape of x.
    """
    number, array = (None, offset) if isinstance(offset, mx.array) else (offset, None)
    return _rope(dims, number, tuple(settings.items()))(x, array, freqs)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, **settings: Any) -> mx.array:
    """``mx.fast.rms_norm``: members' own weights are multiplied after the kernel, which rounds as it does itself.

    Shapes:
        x ``(..., D)``, weight ``(D,)``; returns the shape of x.
    """
    return _norm("rms_norm", eps, tuple(settings.items()))(x, weight)


def layer_norm(x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, **settings: Any) -> mx.array:
    """``mx.fast.layer_norm``: as `rms_norm`.

    Shapes:
        x ``(..., D)``, weight and bias ``(D,)``; returns the shape of x.
    """
    return _norm("layer_norm", eps, tuple(settings.items()))(x, weight, bias)


def gather_mm(a: mx.array, b: mx.array, lhs_indices: Any = None, rhs_indices: Any = None, **settings: Any) -> mx.array:
    """``mx.gather_mm``: P members of E matrices become P E matrices, and indices count on from member to member: so
    they ascend if every member's do.

    Shapes:
        a ``(..., M, K)``, b ``(..., K, N)``, indices into the flattened leading axes; returns ``(*indices, M, N)``.
    """
    return _gather_mm(tuple(settings.items()))(a, b, lhs_indices, rhs_indices)


def _mlx(name: str) -> Callable[..., mx.array]:
    return _taken[name] if _taken else getattr(mx if name == "gather_mm" else mx.fast, name)


def _with_rule(function: Callable[..., mx.array], rule: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """``function`` of arrays and None, mapped by ``rule(n_members, *pairs)``, which puts the members on axis 0.

    MLX's custom functions take arrays alone: settings are bound before, and beside a None the rule would be told the
    axes of other arguments. Each is made once, as MLX keeps it.
    """

    @cache
    def whole(given: tuple[bool, ...]) -> Any:
        def fill(arrays: Iterable[Any], nothing: Any) -> list[Any]:
            left = iter(arrays)
            return [next(left) if there else nothing for there in given]

        def map_over(arrays: Any, axes: Any) -> tuple[mx.array, int]:
            if sum(given) == 1:  # both come bare
                arrays, axes = [arrays], [axes]
            arrays = [x if axis is None else mx.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
            own = [axis is not None for axis in axes]
            return rule(len(arrays[own.index(True)]), *fill(zip(arrays, own, strict=True), (None, False))), 0

        of_arrays = mx.custom_function(lambda *arrays: function(*fill(arrays, None)))
        of_arrays.vmap(map_over)
        return of_arrays

    return lambda *arguments: whole(tuple(x is not None for x in arguments))(*(x for x in arguments if x is not None))


def _each(n: int, x: mx.array, own: bool) -> mx.array:
    """With an axis of ``n`` members in front."""
    return x if own else mx.broadcast_to(x, (n, *x.shape))


def _join(x: mx.array, axis: int) -> mx.array:
    """The members, on axis 0, become part of what is ``axis`` of one of them."""
    return mx.flatten(mx.moveaxis(x, 0, axis), axis, axis + 1)


@cache
def _attention(mode: str | None, settings: _Settings) -> Any:
    def attend(q, k, v, mask, sinks):
        mask = mode if mask is None else mask
        return _mlx("scaled_dot_product_attention")(q, k, v, mask=mask, sinks=sinks, **dict(settings))

    def rule(n, q, k, v, mask, sinks):
        q, k, v = (_each(n, *x) for x in (q, k, v))
        (mask, own_mask), (sinks, own_sinks) = mask, sinks
        axis = int(own_sinks)  # heads or batch
        if mask is not None:
            shape = [1] * (4 + own_mask - mask.ndim) + list(mask.shape[own_mask:])
            mask = mask.reshape(-1, *shape) if own_mask else mask.reshape(shape)
            if own_mask or shape[axis] > 1:  # else it is the same for all that join
                shape[axis] = q.shape[1 + axis]
                mask = _join(mx.broadcast_to(mask, (n, *shape)), axis)
        q, k, v = (_join(x, axis) for x in (q, k, v))
        y = attend(q, k, v, mask, sinks.reshape(-1) if own_sinks else sinks)
        return mx.moveaxis(mx.unflatten(y, axis, (n, -1)), axis, 0)

    return _with_rule(attend, rule)


@cache
def _rope(dims: int, number: int | None, settings: _Settings) -> Any:
    def turn(x, offset, freqs):
        # Not mapped, all that is given to a custom function is differentiated, and the kernel's offset cannot be.
        offset = number if offset is None else mx.stop_gradient(offset)
        return _mlx("rope")(x, dims, offset=offset, freqs=freqs, **dict(settings))

    def rule(n, x, offset, freqs):
        x, (offset, own_offset), (freqs, own_freqs) = _each(n, *x), offset, freqs
        if own_freqs:
            return mx.stack([turn(x[i], offset[i] if own_offset else offset, freqs[i]) for i in range(n)])
        if offset is not None:
            offset = mx.broadcast_to(_each(n, offset, own_offset).reshape(n, -1), x.shape[:2]).reshape(-1)
        return turn(_join(x, 0), offset, freqs).reshape(x.shape)

    return _with_rule(turn, rule)


@cache
def _norm(name: str, eps: float, settings: _Settings) -> Any:
    def norm(x, *scales):
        return _mlx(name)(x, *scales, eps, **dict(settings))

    def rule(n, x, *scales):
        (x, own_x), owned = x, [own for _, own in scales]
        first = owned.index(True) if True in owned else len(scales)  # what comes before it, the kernel applies
        # The kernel computes in fp32 and rounds to the type of its result before the weight.
        dtype = reduce(mx.result_type, [x.dtype, *(scale.dtype for scale, _ in scales if scale is not None)])
        y = norm(x.astype(dtype), *(scale if i < first else None for i, (scale, _) in enumerate(scales)))
        ones = (1,) * (x.ndim - own_x - 1)
        for i, (scale, own) in enumerate(scales[first:], first):
            if scale is not None:
                scale = scale.reshape(n, *ones, -1) if own else scale
                y = y + scale if i else y * scale
        return y

    return _with_rule(norm, rule)


@cache
def _gather_mm(settings: _Settings) -> Any:
    ascending = dict(settings).get("sorted_indices", False)

    def multiply(a, b, lhs, rhs):
        # `mx.vmap` also maps what is replaced, and raises if it cannot; so this has to be plain. Only where neither
        # operand has an axis that is mapped over is it computed.
        a, b = (x if i is None else x.reshape(-1, *x.shape[-2:])[mx.stop_gradient(i)] for x, i in ((a, lhs), (b, rhs)))
        return a @ b

    def rule(n, a, b, lhs, rhs):
        def members(x, own, i, own_i):
            # Without indices, or with ascending ones, each member has to have matrices of its own.
            # MLX's CUDA kernel counts matrices as if they lay one behind the other, which those of a broadcast do not.
            x, own = (mx.contiguous(_each(n, x, own)), True) if i is None or ascending else (x, own)
            batch = x.shape[own:-2]
            i = _each(n, mx.arange(math.prod(batch)).reshape(batch) if i is None else i, own_i)
            if own:
                i = i + (mx.arange(n) * math.prod(batch)).astype(i.dtype).reshape(n, *(1,) * (i.ndim - 1))
            return x.reshape(-1, *x.shape[-2:]), i

        (a, left), (b, right) = members(*a, *lhs), members(*b, *rhs)
        shape = mx.broadcast_shapes(left.shape[1:], right.shape[1:])

        def flat(i, given):
            if given is None and i.shape[1:] == shape:
                return None  # MLX counts as well; its kernels for ascending indices take no more than one
            i = i.reshape(n, *(1,) * (len(shape) + 1 - i.ndim), *i.shape[1:])
            return mx.broadcast_to(i, (n, *shape)).reshape(-1)

        y = _mlx("gather_mm")(a, b, flat(left, lhs[0]), flat(right, rhs[0]), **dict(settings))
        return y.reshape(n, *shape, *y.shape[-2:])

    return _with_rule(multiply, rule)
