"""One optimizer step as a compiled function of explicit state."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers
from mlx.utils import tree_map

from lmxexp.interfaces import Aux, Batch, Loss, Stage
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.once import once
from lmxexp.ops.sum_of_squares import sum_of_squares
from lmxexp.ops.trees import by_path
from lmxexp.optim import curvature
from lmxexp.optim.build import learning_rates
from lmxexp.train.devices import Devices
from lmxexp.train.parts import CURVATURE, PART, UPDATE, WHOLE, n_parts, traces
from lmxexp.train.precision import cast
from lmxexp.train.random_state import STATE
from lmxexp.train.sentinel import CompileSentinel
from lmxexp.train.traced import for_training

Arrays = dict[str, mx.array]

STOP = "stop"
"""Beside the scalars of a step on several devices: how many of them are asked to stop."""


class TrainStep:
    """``step(batch)`` updates model, optimizer and random state, and returns the step's scalars, unevaluated.

    The state is ``[model.state, optimizer.state, mx.random.state]``, handed to ``mx.compile`` as inputs and outputs:
    what is not captured would be a constant of the trace (Adam's step count, the dropout mask). The optimizer must be
    initialised, and a checkpoint restored, before the first call.

    With ``n_micro > 1`` a batch is computed in parts of equal size, one after the other; each part's gradient counts by
    its number of targets, so the step is that of the whole batch.

    An optimizer that wants the curvature (`lmxexp.optim.curvature`) is given an estimate before every so many steps,
    from the batch, or from its first part.

    Args:
        model: in fp32 for mixed precision.
        optimizer: initialised.
        loss: what is minimised.
        max_grad_norm: the gradient's global norm is clipped to it; None: not clipped.
        n_micro: parts of a batch; divides its size.
        stages: the shapes that batches have, the last of which is computed in ``n_micro`` parts and the others in no
            larger ones; empty: they have one shape.
        compute_dtype: parameters are cast to it for forward and backward; None: as they are.
        devices: others that compute the same step on other rows, ``stages`` and the batches being this one's share;
            None: there are none.
        compile: whether to compile.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: mlx.optimizers.Optimizer,
        loss: Loss,
        *,
        max_grad_norm: float | None = 1.0,
        n_micro: int = 1,
        stages: Sequence[Stage] = (),
        compute_dtype: mx.Dtype | None = None,
        devices: Devices | None = None,
        compile: bool = True,
    ):
        self.devices = devices
        self.model, self.optimizer, self.loss = model, optimizer, loss
        self.max_grad_norm, self.n_micro, self.compute_dtype = max_grad_norm, n_micro, compute_dtype
        self.parts = n_parts(stages, n_micro) if stages else {}
        self.sentinel = CompileSentinel(traces(self.parts) if stages else None)
        self.compiled = compile
        self._value_and_grad = mx.value_and_grad(self._loss_of_params)
        self._value_and_grad_of_drawn = mx.value_and_grad(self._drawn_loss_of_params)
        state = [model.state, optimizer.state, STATE]
        inputs = state if devices is None else [*state, devices.state]
        wrap = partial(mx.compile, inputs=inputs, outputs=state) if compile else lambda f: f
        self._whole: Callable[[Arrays], Arrays] = wrap(self._whole_step)
        self._part: Callable[[Arrays], Any] = wrap(self._weighted_part)
        self._apply: Callable[[Any], Arrays] = wrap(self._apply_sum)
        self._estimate: Callable[[Arrays], mx.array] = wrap(self._estimate_curvature)
        self._curved = curvature.curved(optimizer)
        self._add = mx.compile(add) if compile else add

    @property
    def state(self) -> list[Any]:
        """All that the step changes; evaluate it with what the step returns."""
        return [self.model.state, self.optimizer.state, STATE[0]]

    def __call__(self, batch: Batch) -> Arrays:
        """Scalars ``train/loss``, ``train/grad_norm`` (before clipping), ``train/lr…`` and the model's own."""
        arrays = to_arrays(batch)
        n = self.parts.get(arrays["inputs"].shape, self.n_micro)
        parts = split(arrays, n) if n > 1 else [arrays]
        if self._curved is not None and curvature.is_due(self._curved, self._curved.state["step"]):
            self._estimate(parts[0])
        if n == 1:
            return self._whole(arrays)
        total = None
        for arrays_of_part in parts:
            part = self._part(arrays_of_part)
            total = part if total is None else self._add(total, part)
            mx.async_eval(total)  # or the graph of all parts, with their activations, would be built before the first
        return self._apply(total)

    def _loss_of_params(self, params: Any, arrays: Arrays, across: bool = False) -> tuple[mx.array, Aux]:
        if self.devices is None:
            self.model.update(params)
            return self.loss(self.model, Batch(**arrays))
        self.model.update(cast(self.devices.parameters(params), self.compute_dtype))
        loss, aux = self.loss(self.model, Batch(**arrays))
        return self.devices.weighed(loss, aux) if across else (loss, aux)

    def _drawn_loss_of_params(self, params: Any, arrays: Arrays) -> tuple[mx.array, mx.array]:
        self.model.update(params)
        return curvature.drawn_loss(self.model, Batch(**arrays))

    def _gradient(self, arrays: Arrays, across: bool = False) -> tuple[Any, Any, mx.array, Aux]:
        """Of the parameters as they are computed with; several devices' is of their own.

        Args:
            across: over the rows of all devices.
        """
        params = self.model.trainable_parameters()
        # Several devices cast what each has of them.
        traced = for_training(self.model, params, self.compute_dtype if self.devices is None else None)
        # Around the gradient as well: with train.remat it computes layers, and draws what they drop, once more.
        draws = nullcontext() if self.devices is None else self.devices.draws()
        with traced as used, draws:
            (loss, aux), gradient = self._value_and_grad(used, arrays, across)
        self.model.update(params)  # the trace left its casts there
        if across and self.devices is not None:
            gradient, loss, aux = self.devices.mean(gradient, loss, aux)
        return params, gradient, loss, aux

    def _update(self, params: Any, gradient: Any, loss: mx.array, aux: Aux) -> Arrays:
        norm = global_norm(gradient) if self.devices is None else self.devices.norm(gradient)
        gradient = clipped(as_wide(gradient, params), norm, self.max_grad_norm)
        self.model.update(self.optimizer.apply_gradients(gradient, params))
        self.model.after_update(aux)
        scalars = {"train/loss": loss, "train/grad_norm": norm, **learning_rates(self.optimizer), **shown(aux)}
        return scalars if self.devices is None else {**scalars, STOP: self.devices.stop()}

    def _whole_step(self, arrays: Arrays) -> Arrays:
        self._note_trace(WHOLE, batch=arrays)
        return self._update(*self._gradient(arrays, across=self.devices is not None))

    def _weighted_part(self, arrays: Arrays) -> Any:
        """Gradient, loss and other scalars of a part, times its number of targets, in fp32: a small part would be lost
        beside the sum of many in bf16."""
        self._note_trace(PART, batch=arrays)
        _, gradient, loss, aux = self._gradient(arrays, across=self.devices is not None and self.devices.by_parts)
        n = aux["n_targets"]
        weighted = tree_map(lambda a: a.astype(mx.float32) * n, {"gradient": gradient, "loss": loss, "aux": aux})
        return {"n": n, **weighted}

    def _apply_sum(self, total: Any) -> Arrays:
        self._note_trace(UPDATE, total=total)
        if self.devices is not None and not self.devices.by_parts:
            total = self.devices.average(total)
        params = self.model.trainable_parameters()
        n = mx.maximum(total.pop("n"), 1e-9)
        mean = tree_map(lambda t: t / n, total)
        return self._update(params, mean["gradient"], mean["loss"], mean["aux"])

    def _estimate_curvature(self, arrays: Arrays) -> mx.array:
        self._note_trace(CURVATURE, batch=arrays)
        params = self.model.trainable_parameters()
        with for_training(self.model, params, self.compute_dtype) as used:
            (_, n_targets), gradient = self._value_and_grad_of_drawn(used, arrays)
        self.model.update(params)
        curvature.observe(self.optimizer, as_wide(gradient, params), n_targets)
        return n_targets

    def _note_trace(self, name: str, **inputs: Any) -> None:
        if self.compiled:
            self.sentinel.traced(
                name,
                **inputs,
                model=self.model.parameters(),
                optimizer=self.optimizer.state,
                training=self.model.training,
            )


def to_arrays(batch: Batch) -> Arrays:
    """The batch's arrays by name, for the device."""
    return {name: mx.array(value) for name, value in batch._asdict().items() if value is not None}


def shown(aux: Aux) -> Arrays:
    """What a model or loss adds to the step's scalars."""
    return {f"train/{name}": value for name, value in aux.items() if name not in ("nll", "n_targets")}


def split(arrays: Arrays, n: int, axis: int = 0) -> list[Arrays]:
    """``n`` batches of equal size, in order; ``axis`` is that of the sequences."""
    size = arrays["inputs"].shape[axis] // n
    before = (slice(None),) * axis
    return [{name: a[(*before, slice(i * size, (i + 1) * size))] for name, a in arrays.items()} for i in range(n)]


def global_norm(tree: Any) -> mx.array:
    """The Euclidean norm of all leaves together, in fp32."""
    return mx.sqrt(sum_of_squares(list(by_path(tree).values())))


def as_wide(gradient: Any, params: Any) -> Any:
    """A tree of gradients in the types of the parameters.

    After `global_norm`: if that read them as well, wider ones would be written out for it.
    """
    return tree_map(lambda g, p: g.astype(p.dtype), gradient, params)


def clipped(gradient: Any, norm: mx.array, max_norm: float | None) -> Any:
    """A tree of gradients whose `global_norm` is ``norm``, scaled down to ``max_norm`` if that is less."""
    if max_norm is None:
        return gradient
    factor = once(mx.minimum(max_norm / (norm + 1e-6), 1.0))
    return tree_map(lambda g: g * factor.astype(g.dtype), gradient)


def add(total: Any, part: Any) -> Any:
    """The sum of two trees, leaf by leaf."""
    return tree_map(lambda t, p: t + p, total, part)
