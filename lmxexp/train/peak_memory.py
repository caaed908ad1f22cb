"""What a training step will take of memory, from its graph, before anything is computed."""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_unflatten

from lmxexp.interfaces import Aux, Loss
from lmxexp.model import language_model
from lmxexp.model.ffn import experts, glu
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.head_loss import LOGITS_AT_ONCE
from lmxexp.ops.own_gradient import without_own_gradients
from lmxexp.ops.replaced import replaced
from lmxexp.ops.trees import by_path
from lmxexp.train.in_parts import InParts, StandIn
from lmxexp.train.random_state import get_random_state, set_random_state
from lmxexp.train.step import TrainStep

FACTOR = 1.25
"""What MLX takes beyond the arrays that are alive at one time: it allocates ahead of what is being computed, copies
operands into the order that a kernel wants, and evaluates in an order of its own."""

UNDER_WAY, UNDER_WAY_FACTOR = 1.4e9, 1.2
"""The same on CUDA: bytes, and of a small step not more than this times its arrays. The host goes on while the device
computes, and an array is free when the whole graph is through that it was last used in. Fitted to 36 steps on an H200,
see ``benchmarks/results/2026-11-29-memory-h200.md``."""

FACTOR_OF_LAYERS = 1.9
"""The same of layers that are computed once more: the next one is begun while the last is not yet through."""

# They give another shape to an array that is there already.
_VIEWS = {
    *(
        "AsStrided",
        "Broadcast",
        "Copy",
        "ExpandDims",
        "Flatten",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
    ),
    *("Depends", "Transpose", "Unflatten"),
}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one training step."""

    weights: int
    optimizer: int
    """The optimizer's state."""
    gradients: int
    logits: int
    """One array of them; forward and backward need two to four on a CPU."""
    activations: int
    """The rest: what the forward pass keeps for the backward one, and temporaries."""
    peak: int
    """The sum, with `FACTOR` or `UNDER_WAY` on what is not state; or, if that is more, what the optimizer's update
    takes, or layers that are computed once more."""


def estimate(
    model: LanguageModel,
    optimizer: mlx.optimizers.Optimizer,
    loss: Loss,
    *,
    batch_size: int,
    seq_len: int,
    n_micro: int = 1,
    compute_dtype: mx.Dtype | None = None,
    remat: language_model.Remat = "none",
    document_mask: bool = False,
    backend: str = "cpu",
    parts: InParts | None = None,
) -> MemoryEstimate:
    """Follow the arrays of one training step from where they are made to where they are last used.

    The step is traced and not run. The greatest sum of the arrays alive at one time is the estimate, what is not state
    times `FACTOR` or, on CUDA, with what is `UNDER_WAY`. Nothing is allocated if the model was not evaluated. Functions
    with a gradient of their own are traced with MLX's: of Mamba's scan, whose own keeps less, the estimate is an upper
    bound.

    Args:
        model: its parameters and the optimizer's state are put back after the trace.
        optimizer: initialised.
        batch_size: sequences of one optimizer step, on one device.
        n_micro: parts that they are computed in.
        compute_dtype: as `TrainStep` takes it.
        remat: what is computed once more for the gradient. With ``light`` it is not there between the passes; with
            ``block`` it is, beside what is kept between layers, what the largest of them takes.
        parts: what of model and optimizer several devices share; None: each has them whole.
        document_mask: whether batches have ``segment_ids``, of which attention makes masks.
        backend: ``cpu``, ``metal`` or ``cuda``. On a GPU the head's loss and gated products keep less, and on CUDA
            attention does. (MLX has no gradient of the fused kernel on Metal, and computes the scores in training.)

    Raises:
        ValueError: a primitive that MLX cannot trace.
    """
    devices: Any = None if parts is None else StandIn(parts, compute_dtype)
    step = TrainStep(
        model, optimizer, loss, n_micro=n_micro, compute_dtype=compute_dtype, devices=devices, compile=False
    )
    before, random_state = [model.parameters(), optimizer.state], get_random_state()
    own = (
        before
        if parts is None
        else [parts.placeholders("model", before[0]), parts.placeholders("optimizer", before[1])]
    )
    leaves = by_path(own)
    trainable = [leaves[f"0.{path}"] for path in by_path(model.trainable_parameters())]

    def traced(tokens: mx.array, *state: mx.array) -> list[mx.array]:
        parameters, optimizer_state = tree_unflatten(list(zip(leaves, state, strict=True)))
        model.update(parameters)
        optimizer.state = optimizer_state
        batch = {"inputs": tokens, "targets": tokens, **({"segment_ids": tokens} if document_mask else {})}
        if n_micro == 1:
            result = [step._whole_step(batch), model.parameters(), optimizer.state]
        else:
            part = step._weighted_part(batch)
            gradient = part.pop("gradient")
            result = [part, gradient]  # in this order, or the logits would wait for the loss until the end
        return list(by_path(result).values())

    tokens = mx.zeros((batch_size // n_micro, seq_len), mx.int32)

    head_with_loss = backend != "cpu" and model.head_with_loss is not None

    def peak_with(layer: Any, head: bool = True) -> int:
        set_before, model.remat = model.remat, remat
        no_head = nullcontext() if head else replaced(LanguageModel, "score", _score_without_head)
        with _on_cpu(), without_own_gradients(), _stand_ins(backend, layer, head_with_loss), no_head:
            try:
                return _Graph.of(traced, tokens, *leaves.values()).peak()
            finally:
                model.update(before[0])
                optimizer.state = before[1]
                model.remat = set_before
                set_random_state(random_state)

    # Layers of the same kinds take as much as each other.
    different = {tuple(type(module) for module in layer.modules()): layer for layer in model.layers}
    peak = max(map(peak_with, different.values() if remat == "block" else [None]))
    weights, in_optimizer = _nbytes(own[0]), _nbytes(own[1])
    in_layers = max(peak_with(layer, head=False) for layer in different.values()) if remat == "block" else 0
    in_layers = max(in_layers - weights - in_optimizer, 0)
    # One device's of a whole batch are in the type that they are computed in until they are used.
    of_one = compute_dtype.size if compute_dtype is not None and n_micro == 1 and parts is None else None
    gradients = sum(a.size * (of_one or a.itemsize) for a in trainable)
    # With parts, the sum of their gradients is kept beside the part's own, both in fp32; after them, the state before
    # the update and that after it are there together.
    sums = 0 if n_micro == 1 else sum(4 * a.size for a in trainable)
    kept = weights + in_optimizer + sums
    update = kept + weights + in_optimizer if n_micro > 1 else 0
    rest = max(peak - weights - in_optimizer, gradients)
    logits = tokens.size * model.vocab_size * (compute_dtype or trainable[0].dtype).size
    if head_with_loss:  # of the logits' gradient, which is made in parts
        rest += min(logits, LOGITS_AT_ONCE * (compute_dtype or trainable[0].dtype).size)
    return MemoryEstimate(
        weights=weights,
        optimizer=in_optimizer,
        gradients=gradients,
        logits=logits,
        activations=max(rest - gradients - logits, 0),
        peak=max(kept + _with_what_is_under_way(rest, in_layers, backend), update),
    )


def _with_what_is_under_way(rest: int, in_layers: int, backend: str) -> int:
    """The peak of what is not state.

    Args:
        rest: the arrays alive at one time.
        in_layers: those of layers that are computed once more.
    """
    if backend == "cuda":
        return max(rest, in_layers) + round(min(UNDER_WAY, UNDER_WAY_FACTOR * rest))
    return round(max(FACTOR * rest, FACTOR_OF_LAYERS * in_layers))


def _nbytes(tree: Any) -> int:
    return sum(a.nbytes for a in by_path(tree).values())


@dataclass
class _Graph:
    """The operations of a traced function in an order they can be computed in."""

    operations: list[tuple[str, list[str], dict[str, int]]]
    """Name, the names of the inputs, and the bytes of the outputs by name."""
    inputs: dict[str, int]
    outputs: list[str]

    @classmethod
    def of(cls, function: Any, *args: mx.array) -> "_Graph":
        graph = cls([], {}, [])

        def note(event: dict[str, Any]) -> None:
            if event["type"] == "primitive":
                made = {name: math.prod(shape) * dtype.size for name, shape, dtype in event["outputs"]}
                graph.operations.append((event["name"], [name for name, *_ in event["inputs"]], made))
            elif event["type"] == "inputs":
                graph.inputs |= {name: math.prod(shape) * dtype.size for name, shape, dtype in event["inputs"]}
            elif event["type"] == "constants":
                graph.inputs |= {name: a.nbytes for name, a in event["constants"]}
            elif event["type"] == "outputs":
                graph.outputs += [name for name, *_ in event["outputs"]]

        mx.export_function(note, function, *args)
        return graph

    def peak(self) -> int:
        """The most bytes that are alive at one time. The inputs always are: MLX holds the state until the whole step is
        computed."""
        buffer: dict[str, str] = {}
        for name, used, made in self.operations:
            if name in _VIEWS and used:
                buffer |= dict.fromkeys(made, buffer.get(used[0], used[0]))
        size = self.inputs | {name: n for _, _, made in self.operations for name, n in made.items()}
        times: dict[str, list[int]] = {name: [0] for name in self.inputs}
        """Of each, the operations that make and use it."""
        for i, (_, used, made) in enumerate(self.operations):
            for name in (*used, *made):
                times.setdefault(buffer.get(name, name), []).append(i)
        end = len(self.operations)
        for name in self.outputs:
            times.setdefault(buffer.get(name, name), []).append(end)
        again, needed_by = self._made_again(buffer)
        change = [0] * (end + 2)
        for name, at in times.items():
            never_used = len(at) == 1
            last = max([at[-1], *(times[other][-1] for other in needed_by.get(name, ()))])
            if never_used or name in self.inputs:
                last = end
            change[at[0]] += size[name]
            change[last + 1] -= size[name]
            if name in again and len(at) > 2:  # the longest time without use is that between the passes
                k = max(range(1, len(at)), key=lambda k: at[k] - at[k - 1])
                change[at[k - 1] + 1] -= size[name]
                change[at[k]] += size[name]
        return max(itertools.accumulate(change))

    def _made_again(self, buffer: dict[str, str]) -> tuple[set[str], dict[str, set[str]]]:
        """What is not kept between forward and backward pass, as a dependency tells (see `lmxexp.model.recompute`); and
        of what it is made of once more, for what."""
        maker = {name: used for _, used, made in self.operations for name in made}
        again: set[str] = set()
        needed_by: dict[str, set[str]] = {}
        for _, (value, *sources), _ in (operation for operation in self.operations if operation[0] == "Depends"):
            left, seen = [value], set(sources)
            again.add(buffer.get(value, value))
            while left:
                name = left.pop()
                if name in maker and name not in seen:
                    again.add(buffer.get(name, name))
                    left += maker[name]
                seen.add(name)
            for source in sources:
                needed_by.setdefault(buffer.get(source, source), set()).add(buffer.get(value, value))
        return again, needed_by


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Within, one graph is traced on every machine."""
    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    try:
        yield
    finally:
        mx.set_default_device(device)


@contextmanager
def _stand_ins(backend: str, whole: Any, head_with_loss: bool) -> Iterator[None]:
    """Within, what MLX cannot trace, or would trace as something else, is done by arrays of the same sizes; so are
    the layers that are computed once more, all but ``whole``."""
    with ExitStack() as stack:
        # The gradient of grouped products is a primitive that is not traced.
        stack.enter_context(replaced(mx, "gather_mm", lambda a, b, **_: (a[..., 0, :] @ b[0])[..., None, :]))
        stack.enter_context(replaced(mx, "contiguous", lambda a, **_: a + 0))  # a copy, which is not traced as one
        stack.enter_context(replaced(language_model, "recomputed", partial(_keeps_input_alone, whole)))
        if backend == "cuda":
            # Traced on the CPU, attention keeps all its scores; a fused kernel keeps queries, keys, values and output.
            attention = partial(_attention_on_cuda, {}, mx.fast.scaled_dot_product_attention)
            stack.enter_context(replaced(mx.fast, "scaled_dot_product_attention", attention))
        if head_with_loss:
            stack.enter_context(replaced(language_model, "cross_entropy", _keeps_logits_alone))
        if backend != "cpu":
            for module in (glu, experts):
                stack.enter_context(replaced(module, "gated", lambda _, gate, up: gate * up))
        yield


def _keeps_input_alone(whole: Any, layer: Any, x: mx.array, **rest: Any) -> tuple[mx.array, Aux]:
    """A layer's output, ``whole``'s by what it computes."""
    return layer(x, cache=None, **rest) if layer is whole else (x + mx.square(x), {})


def _score_without_head(_: LanguageModel, h: mx.array, targets: mx.array) -> language_model.Score:
    """Of the shapes that the loss wants; the head's peak, at another time than the layers', is left out."""
    log_z = h.sum(axis=-1).astype(mx.float32)
    return language_model.Score(log_z - targets, log_z, h)


def _keeps_logits_alone(logits: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
    """Arrays of a cross-entropy's shape, whose gradient wants nothing that is as large as the logits but these."""
    log_z = logits.sum(axis=-1).astype(mx.float32)
    return log_z - targets, log_z


def _attention_on_cuda(
    masks: dict[Any, mx.array],
    with_scores: Callable[..., mx.array],
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    mask: Any = None,
    **rest: Any,
) -> mx.array:
    """An array of attention's shape, made of all that attention is made of; of a mask, one in the type of queries.

    Args:
        masks: those of earlier layers, by shape: compiled, layers of equal masks share one.
        with_scores: what MLX does where cuDNN has no kernel, in fp32 and with wide heads.
    """
    widths = (q.shape[-1], v.shape[-1])
    if q.dtype == mx.float32 or any(width % 8 or width > 128 for width in widths):
        return with_scores(q, k, v, mask=mask, **rest)
    B, H, L, _C = q.shape
    K = k.shape[1]
    if isinstance(mask, mx.array):
        q = q * masks.setdefault(mask.shape, mx.where(mask, 0.0, -1.0).astype(q.dtype))[..., :1]
    weights = q[..., :1].reshape(B, K, H // K, L, 1) * k[:, :, None, -L:, :1]
    return (weights * v[:, :, None, -L:]).reshape(B, H, L, v.shape[-1])
