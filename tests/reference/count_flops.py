"""FLOPs of a forward pass, counted from the operations that MLX would perform, and not from any formula of a kind's.

Counted, a multiply-add as two: products of matrices, with weights and between positions, as large as they are performed
(padding of a last chunk included); of those whose outcome goes into a softmax or comes out of one, the pairs that the
mask lets through, because a kernel may leave out the others; short convolutions by taps; and in a scan without products
of matrices (Mamba's), multiplications and additions on arrays of its state's shape, as performed.

Not counted: norms, activations, positions, gates, decays, masks, sums, look-ups.
"""

import itertools
import math
import os
import sys
from collections import defaultdict
from contextlib import ExitStack
from unittest import mock

import mlx.core as mx

from lmxexp.ops import exp
from lmxexp.ops.own_gradient import without_own_gradients
from lmxexp.ops.selective_scan import selective_scan
from lmxexp.ops.short_conv import causal_conv

# What scores and weights pass through on their way between a product and the softmax.
ELEMENTWISE = {
    *("Abs", "Add", "AsType", "Broadcast", "Concatenate", "Copy", "Divide", "Exp", "ExpandDims", "Flatten", "Multiply"),
    *("Negative", "Reshape", "Select", "Slice", "Split", "Squeeze", "StopGradient", "Subtract", "Tanh", "Transpose"),
    "Unflatten",
}
MASKED = -1e29
_NUMBERS = itertools.count(1)


def forward_flops(function, tokens):
    """FLOPs of ``function(tokens)``, a model or what uses one."""
    visible = _visible_pairs(function, tokens)
    operations, constants, called = _trace(function, tokens)
    return sum(_products(operations, constants, visible)) + sum(_element_by_element(operations, called))


def _visible_pairs(function, tokens):
    """``(seen, columns, all)`` of the scores in every softmax, in the order of the calls: computed, and looked at."""
    found = []
    softmax = mx.softmax

    def note(x, *args, **kwargs):
        found.append((mx.sum(x > MASKED).item(), x.shape[-1], x.size))
        return softmax(x, *args, **kwargs)

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(exp, "is_slow", return_value=False))  # so that every softmax is MLX's
        stack.enter_context(mock.patch.object(mx, "softmax", note))
        stack.enter_context(mock.patch.object(mx.fast, "scaled_dot_product_attention", _plain))
        function(tokens)
    return found


def _trace(function, tokens):
    """The operations of the forward pass, the scalar constants in them, and calls of what has no products.

    Each softmax's input gets a constant added that says which of the calls it is.
    """
    operations, constants, called, calls = [], {}, defaultdict(list), []
    softmax = mx.softmax

    def mark(x, *args, **kwargs):
        calls.append(x.shape)
        return softmax(x + mx.array(1000.0 + len(calls)), *args, **kwargs)

    def note(event):
        if event["type"] == "primitive":
            operations.append((event["name"], event["inputs"], event["outputs"]))
        elif event["type"] == "constants":
            constants.update({name: value.item() for name, value in event["constants"] if value.size == 1})

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(mx, "softmax", mark))
        stack.enter_context(mock.patch.object(mx.fast, "scaled_dot_product_attention", _plain))
        stack.enter_context(mock.patch.object(exp, "is_slow", return_value=False))
        stack.enter_context(without_own_gradients())  # MLX traces none; the forward pass is the same
        stack.enter_context(mock.patch.dict(os.environ, {"LMXEXP_CUDA_KERNELS": "0"}))  # nor compiled kernels
        for noted in (causal_conv, selective_scan):
            _patch_everywhere(stack, noted, called[noted.__name__])
        mx.export_function(note, lambda x: function(x), tokens)
    return operations, constants, called


def _products(operations, constants, visible):
    """FLOPs of each product of matrices."""
    share = _visible_shares(operations, constants, visible)
    for name, inputs, outputs in operations:
        out = math.prod(outputs[0][1])
        if name in ("Matmul", "AddMM", "GatherMM"):
            yield 2 * out * inputs[0][1][-1] * share.get(outputs[0][0], 1)
        elif name == "Convolution":
            yield 2 * out * math.prod(inputs[1][1][1:])
        else:
            assert not name.endswith(("MM", "Matmul", "Attention")), f"{name} is not counted"


def _visible_shares(operations, constants, visible):
    """Of each product before or after a softmax, by the name of its output, the share of the pairs that are seen."""
    made_by = {output[0]: op for op in operations for output in op[2]}
    used_by = defaultdict(list)
    for op in operations:
        for name, *_ in op[1]:
            used_by[name].append(op)
    share = {}
    for op in operations:
        if op[0] == "Softmax":
            seen, columns, size = visible[_number_of_the_call(op, made_by, constants)]
            keys = {product[2][0]: product[2][0][1][-1] for product in _products_before(op, made_by)}
            keys |= {product[2][0]: product[1][0][1][-1] for product in _products_after(op, used_by)}
            for (name, shape, _), n in keys.items():
                if len(shape) > 3:  # between positions, and no router's
                    # A column that is no key (a sink) is seen by all.
                    rows = size // columns
                    share[name] = (seen - rows * (columns - n)) / (rows * n)
    return share


def _number_of_the_call(op, made_by, constants):
    """Of the softmax: from the constant that was added to its input."""
    name, inputs, _ = made_by[op[1][0][0]]
    assert name == "Add", "a softmax that is not Python's mx.softmax"
    for operand, *_ in inputs:
        while operand in made_by and made_by[operand][0] in ("Broadcast", "AsType"):
            operand = made_by[operand][1][0][0]
        if constants.get(operand, 0) > 1000:
            return round(constants[operand]) - 1001
    raise AssertionError("an unmarked softmax")


def _products_before(op, made_by):
    """The products whose outcomes are the softmax's scores."""
    found, todo = [], [name for name, *_ in op[1]]
    while todo:
        before = made_by.get(todo.pop())
        if before is None:
            continue
        if before[0] == "Matmul":
            found.append(before)
        elif before[0] in ELEMENTWISE:
            todo += [name for name, *_ in before[1]]
    return found


def _products_after(op, used_by):
    """The products that the softmax's weights go into."""
    found, todo = [], [op[2][0][0]]
    while todo:
        name = todo.pop()
        for after in used_by[name]:
            if after[0] == "Matmul":
                if after[1][0][0] == name:
                    found.append(after)
            elif after[0] in ELEMENTWISE:
                todo += [output[0] for output in after[2]]
    return found


def _element_by_element(operations, called):
    for x, weight, *_ in called["causal_conv"]:
        yield 2 * math.prod(x) * weight[-1]
    states = {(a[0], a[1]) for _, _, a, *_ in called["selective_scan"]}
    for name, _, outputs in operations:
        if name in ("Multiply", "Add") and outputs[0][1][-2:] in states and len(outputs[0][1]) > 2:
            yield math.prod(outputs[0][1])


def _plain(q, k, v, *, scale, mask=None, sinks=None):
    """Attention with its scores in the open."""
    (B, H, L, _), (K, S) = q.shape, k.shape[1:3]
    assert sinks is None
    q = q + mx.array(1e-6 * next(_NUMBERS))  # MLX would merge the scores of two calls that differ in the values only
    scores = scale * (q.reshape(B, K, H // K, L, -1) @ k[:, :, None].swapaxes(-1, -2))
    if isinstance(mask, str):
        mask = mx.arange(S) <= mx.arange(S - L, S)[:, None]
    if mask is not None:
        if mask.ndim == 4:  # (B, 1 or H, L, S)
            mask = mask[:, :, None] if mask.shape[1] == 1 else mask.reshape(mask.shape[0], K, H // K, L, S)
        scores = mx.where(mask, scores, -mx.inf)
    return (mx.softmax(scores, axis=-1) @ v[:, :, None]).reshape(B, H, L, -1)


def _patch_everywhere(stack, function, calls):
    """Note the shapes of the arguments of every call of a function, under whatever name it was imported."""

    def noting(*args, **kwargs):
        calls.append([getattr(a, "shape", None) for a in args])
        return function(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("lmxexp.") and vars(module).get(function.__name__) is function:
            stack.enter_context(mock.patch.object(module, function.__name__, noting))
