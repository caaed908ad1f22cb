"""One optimizer step of several models as one compiled function."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.optimizers import Optimizer
from mlx.utils import tree_map, tree_unflatten

from lmxexp.interfaces import Aux, Batch, Loss, Stage
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops import cuda
from lmxexp.ops.fused import mapped
from lmxexp.ops.linear import gradients_in_rows
from lmxexp.ops.once import once
from lmxexp.ops.trees import by_path
from lmxexp.optim import curvature
from lmxexp.optim.build import Scheduled, leaf_optimizers, learning_rates
from lmxexp.population.settings import NotMappable, Settings, differing, put
from lmxexp.train.parts import CURVATURE, PART, UPDATE, WHOLE, n_parts, traces
from lmxexp.train.precision import cast
from lmxexp.train.random_state import STATE
from lmxexp.train.sentinel import CompileSentinel
from lmxexp.train.step import add, as_wide, clipped, global_norm, shown, split

Arrays = dict[str, mx.array]


class PopulationStep:
    """``step(batches)`` does for every member what its own `TrainStep` does, all in one mapped step.

    Parameters, optimizer states and random keys of all members lie along a leading axis of ``P``. The forward pass is
    mapped over it and the sum of the losses is differentiated: the gradients do not depend on each other, and the
    fused kernels stay whole (`lmxexp.ops.fused`). The first member's model, optimizer and loss are those that are
    traced; numbers in which the others' optimizers and losses differ are arrays of the step.

    A member whose loss is no number any more is left as it was before that step, by `freeze`, and stays so.

    Args:
        models: of the same structure and shapes, initialised.
        optimizers: initialised for them; their states alike.
        losses: alike but for numbers.
        keys: each member's random key.
        max_grad_norm, n_micro, stages, compute_dtype, compile: as of `lmxexp.train.step.TrainStep`.

    Raises:
        NotMappable: the optimizers or losses differ in more than numbers.
    """

    def __init__(
        self,
        models: Sequence[LanguageModel],
        optimizers: Sequence[Optimizer],
        losses: Sequence[Loss],
        keys: Sequence[mx.array],
        *,
        max_grad_norm: float | None = 1.0,
        n_micro: int = 1,
        stages: Sequence[Stage] = (),
        compute_dtype: mx.Dtype | None = None,
        compile: bool = True,
    ):
        self.size = len(models)
        self.max_grad_norm, self.n_micro, self.compute_dtype = max_grad_norm, n_micro, compute_dtype
        self.parts = n_parts(stages, n_micro) if stages else {}
        self._model, self._optimizer, self._loss = models[0], optimizers[0], losses[0]
        self._leaves = leaf_optimizers(self._optimizer)
        self._schedules = _schedules(optimizers)
        leaves = zip(*(leaf_optimizers(optimizer) for optimizer in optimizers), strict=True)
        self._settings: dict[str, Any] = {
            "loss": differing("loss", losses),
            "optim": [differing("optim", of_members) for of_members in leaves],
        }
        self._curved = _curved(optimizers)
        self._trainable = set(by_path(self._model.trainable_parameters()))
        self.state: dict[str, Any] = {
            "parameters": _stacked([by_path(model.parameters()) for model in models]),
            "optimizer": _stacked([by_path(optimizer.state) for optimizer in optimizers]),
            "keys": mx.stack(list(keys)),
            "alive": mx.full((self.size,), True),
        }
        mx.eval(self.state)
        self.masked = False
        self.compiled = compile
        self._make()

    def _make(self) -> None:
        allowed = traces(self.parts) if self.parts else {}
        self.sentinel = CompileSentinel({self._named(name): n for name, n in allowed.items()})
        wrap: Callable[..., Any] = mx.compile if self.compiled else lambda f: f
        self._whole, self._part, self._apply = wrap(self._whole_step), wrap(self._weighted_part), wrap(self._apply_sum)
        self._estimate = wrap(self._estimate_curvature)
        self._add = wrap(add)

    def part(self, members: Sequence[int]) -> PopulationStep:
        """The step of some of the members, who go on from where they are. It is compiled anew."""
        smaller = copy.copy(self)
        places = mx.array(list(members))
        smaller.size = len(members)
        smaller.state, smaller._settings = (
            tree_map(lambda a: a[places], tree) for tree in (self.state, self._settings)
        )
        smaller._schedules = [{name: [of[i] for i in members] for name, of in s.items()} for s in self._schedules]
        smaller._make()
        return smaller

    def freeze(self, members: Sequence[int], before: dict[str, Any]) -> None:
        """Put members back to what they were in an earlier state of all; no step changes them any more.

        The step is compiled anew, once: from now on it is masked. Before, it is not, as the mask would keep the
        optimizer's update from being one kernel for each parameter.
        """
        frozen = mx.array([i in members for i in range(self.size)])
        self.state = _chosen(frozen, before, self.state)
        self.state["alive"] = self.state["alive"] & ~frozen
        if not self.masked:
            self.masked = True
            self._make()

    def __call__(self, batches: Sequence[Batch]) -> Arrays:
        """Every member's batch in, all members' scalars out: ``(P,)`` each, unevaluated, under `TrainStep`'s names."""
        arrays = _together(batches)
        n = self.parts.get(arrays["inputs"].shape[1:], self.n_micro)
        parts = split(arrays, n, axis=1) if n > 1 else [arrays]
        if self._curved is not None and self._estimate_is_due(self._curved):
            self.state = self._estimate(self.state, parts[0])
        if n == 1:
            scalars, self.state = self._whole(self.state, arrays)
            return scalars
        total = None
        for arrays_of_part in parts:
            part, self.state = self._part(self.state, arrays_of_part)
            total = part if total is None else self._add(total, part)
            mx.async_eval(total)  # as in `TrainStep`: or the activations of all parts would be kept
        scalars, self.state = self._apply(self.state, total)
        return scalars

    def member(self, i: int) -> tuple[Arrays, Arrays, mx.array]:
        """Parameters and optimizer state by path, and the random key of a member."""
        parameters, optimizer = ({k: a[i] for k, a in self.state[name].items()} for name in ("parameters", "optimizer"))
        return parameters, optimizer, self.state["keys"][i]

    def _estimate_is_due(self, leaf: Any) -> bool:
        place = next(i for i, of_all in enumerate(self._leaves) if of_all is leaf)
        return curvature.is_due(leaf, mx.max(_steps(self.state["optimizer"])[place]))  # but for those that are frozen

    @staticmethod
    def load(model: LanguageModel, parameters: Arrays) -> None:
        """Put parameters that lie by their paths into a model."""
        model.update(tree_unflatten(list(parameters.items())))

    def set_key(self, i: int, key: mx.array) -> None:
        """For what draws random numbers between two steps of a member."""
        self.state["keys"][i] = key

    # --- traced ------------------------------------------------------------------------------------------------------

    def _whole_step(self, state: Any, arrays: Arrays) -> tuple[Arrays, Any]:
        self._note_trace(WHOLE, state=state, batch=arrays)
        gradient, loss, aux, keys = self._gradient(state, arrays, self._loss)
        return self._update({**state, "keys": keys}, state, gradient, loss, aux)

    def _weighted_part(self, state: Any, arrays: Arrays) -> tuple[Any, Any]:
        self._note_trace(PART, state=state, batch=arrays)
        gradient, loss, aux, keys = self._gradient(state, arrays, self._loss)
        n = aux["n_targets"]
        weighted = tree_map(
            lambda a: a.astype(mx.float32) * n.reshape(-1, *(1,) * (a.ndim - 1)),
            {"gradient": gradient, "loss": loss, "aux": aux},
        )
        if self.masked:
            keys = mx.where(state["alive"][:, None], keys, state["keys"])
        return {"n": n, **weighted}, {**state, "keys": keys}

    def _apply_sum(self, state: Any, total: Any) -> tuple[Arrays, Any]:
        self._note_trace(UPDATE, state=state, total=total)
        n = mx.maximum(total.pop("n"), 1e-9)
        mean = tree_map(lambda t: t / n.reshape(-1, *(1,) * (t.ndim - 1)), total)
        return self._update(state, state, mean["gradient"], mean["loss"], mean["aux"])

    def _estimate_curvature(self, state: Any, arrays: Arrays) -> Any:
        self._note_trace(CURVATURE, state=state, batch=arrays)
        gradient, _, n_targets, keys = self._gradient(state, arrays, curvature.drawn_loss)
        gradient = as_wide(gradient, self._parted(state["parameters"])[0])
        with _Restored(self._model, self._leaves):
            optimizer = mx.vmap(self._observed_by_one)(state["optimizer"], self._settings["optim"], gradient, n_targets)
        new = {**state, "optimizer": optimizer, "keys": keys}
        return _chosen(state["alive"], new, state) if self.masked else new

    def _observed_by_one(self, state: Arrays, settings: Any, gradient: Arrays, n_targets: mx.array) -> Arrays:
        self._optimizer.state = tree_unflatten(list(state.items()))
        for leaf, own in zip(self._leaves, settings, strict=True):
            put(leaf, own)
        nested: Any = tree_unflatten(list(gradient.items()))
        curvature.observe(self._optimizer, nested, n_targets)
        return by_path(self._optimizer.state)

    def _gradient(
        self, state: Any, arrays: Arrays, loss: Callable[[LanguageModel, Batch], tuple[mx.array, Any]]
    ) -> tuple[Arrays, mx.array, Any, mx.array]:
        """All members' gradients, of the parameters as they are computed with, losses, what the loss returns beside
        itself, and random keys."""
        trainable, others = self._parted(state["parameters"])
        trainable = cast(trainable, self.compute_dtype)

        def total(trainable: Arrays) -> tuple[mx.array, Any]:
            with mapped():
                each, aux, keys = mx.vmap(partial(self._loss_of_one, loss))(
                    trainable, others, state["keys"], self._settings["loss"], arrays
                )
            return each.sum(), (each, aux, keys)

        with _Restored(self._model, [self._loss, *self._leaves]), gradients_in_rows():
            (_, (each, aux, keys)), gradient = mx.value_and_grad(total)(trainable)
        return gradient, each, aux, keys

    def _loss_of_one(
        self, loss_of: Any, trainable: Arrays, others: Arrays, key: mx.array, settings: Settings, arrays: Arrays
    ) -> tuple[mx.array, Any, mx.array]:
        self._put(others)
        self._put(trainable)
        put(self._loss, settings)
        before = STATE[0][:]  # MLX hands its own array out: it can be written into, not replaced
        STATE[0][:] = key
        try:
            loss, aux = loss_of(self._model, Batch(**arrays))
            return loss, aux, STATE[0][:]
        finally:
            STATE[0][:] = before

    def _update(self, new: Any, old: Any, gradient: Arrays, loss: mx.array, aux: Aux) -> tuple[Arrays, Any]:
        trainable, others = self._parted(new["parameters"])
        # All are at the same step, but those that are frozen.
        counts = [mx.max(of_members) for of_members in _steps(new["optimizer"])]
        rates = [
            {name: _rates(of_members, count) for name, of_members in s.items()}
            for s, count in zip(self._schedules, counts, strict=True)
        ]
        with _Restored(self._model, [self._loss, *self._leaves]), cuda.under_vmap(True):
            parameters, optimizer, scalars = mx.vmap(self._update_of_one)(
                trainable, others, new["optimizer"], rates, self._settings["optim"], gradient, aux
            )
        state = {**old, "parameters": parameters, "optimizer": optimizer, "keys": new["keys"]}
        if self.masked:
            state = _chosen(old["alive"], state, old)
        return {"train/loss": loss, **scalars, **shown(aux)}, state

    def _update_of_one(
        self, trainable: Arrays, others: Arrays, state: Arrays, rates: Any, settings: Any, gradient: Arrays, aux: Aux
    ) -> tuple[Arrays, Arrays, Arrays]:
        self._optimizer.state = tree_unflatten(list(state.items()))
        for leaf, own_rates, own_settings in zip(self._leaves, rates, settings, strict=True):
            put(leaf, own_settings)
            leaf._schedulers = {name: _constant(rate) for name, rate in own_rates.items()}
        norm = global_norm(gradient)
        gradient = clipped(as_wide(gradient, trainable), norm, self.max_grad_norm)
        nested: Any = (tree_unflatten(list(tree.items())) for tree in (gradient, trainable))
        self._put(others)
        self._model.update(self._optimizer.apply_gradients(*nested))
        self._model.after_update(aux)
        scalars = {"train/grad_norm": norm, **learning_rates(self._optimizer)}
        return by_path(self._model.parameters()), by_path(self._optimizer.state), scalars

    def _put(self, parameters: Arrays) -> None:
        self.load(self._model, parameters)

    def _parted(self, parameters: Arrays) -> tuple[Arrays, Arrays]:
        """Those that are trained, and the others, which `after_update` may change."""
        trained = {path: a for path, a in parameters.items() if path in self._trainable}
        return trained, {path: a for path, a in parameters.items() if path not in self._trainable}

    def _note_trace(self, name: str, **inputs: Any) -> None:
        if self.compiled:
            self.sentinel.traced(self._named(name), training=self._model.training, **inputs)

    def _named(self, function: str) -> str:
        return f"{function} of {self.size} members"


class _Restored:
    """What a trace puts into the first member's objects is taken out again."""

    def __init__(self, model: LanguageModel, objects: Sequence[Any]):
        self._model, self._objects = model, objects

    def __enter__(self) -> None:
        self._parameters = self._model.parameters()
        self._attributes = [dict(vars(o)) for o in self._objects]

    def __exit__(self, *_: object) -> None:
        self._model.update(self._parameters)
        for o, attributes in zip(self._objects, self._attributes, strict=True):
            vars(o).update(attributes)


def _schedules(optimizers: Sequence[Optimizer]) -> list[dict[str, list[Callable[[mx.array], mx.array]]]]:
    """Of every leaf optimizer, by the name of what is scheduled, every member's schedule."""
    leaves = [leaf_optimizers(optimizer) for optimizer in optimizers]
    return [
        {name: [leaf._schedulers[name] for leaf in of_one] for name in of_one[0]._schedulers}
        for of_one in zip(*leaves, strict=True)
    ]


def _curved(optimizers: Sequence[Optimizer]) -> Any:
    """The first member's `lmxexp.optim.curvature.curved`; all estimate at the same steps."""
    found = [leaf for optimizer in optimizers if (leaf := curvature.curved(optimizer)) is not None]
    if len(every := sorted({leaf.estimate_every for leaf in found})) > 1:
        raise NotMappable(f"optim.estimate_every is {', '.join(map(str, every))}: one step cannot be all of these")
    return found[0] if found else None


def _steps(state: Arrays) -> list[mx.array]:
    """The counts of every leaf optimizer, ``(P,)``, in the order of `leaf_optimizers`."""
    return [a for path, a in state.items() if re.fullmatch(r"(states\.\d+\.)*step", path)]


def _stacked(trees: Sequence[Arrays]) -> Arrays:
    shapes = [{path: (a.shape, a.dtype) for path, a in tree.items()} for tree in trees]
    if any(of_one != shapes[0] for of_one in shapes):
        raise NotMappable("parameters or optimizer states differ in their shapes")
    return {path: mx.stack([tree[path] for tree in trees]) for path in trees[0]}


def _together(batches: Sequence[Batch]) -> Arrays:
    """All members' batches, ``(P, ...)``, by name; stacked on the host, as P copies on the device take longer."""
    arrays = [{name: np.asarray(a) for name, a in batch._asdict().items() if a is not None} for batch in batches]
    shapes = [{name: (a.shape, a.dtype) for name, a in of_one.items()} for of_one in arrays]
    if any(of_one != shapes[0] for of_one in shapes):
        raise NotMappable("batches differ in their shapes")
    return {name: mx.array(np.stack([of_one[name] for of_one in arrays])) for name in arrays[0]}


def _chosen(where: mx.array, a: Any, b: Any) -> Any:
    """Members of one state, and the others of another."""
    return tree_map(lambda x, y: mx.where(where.reshape(-1, *(1,) * (x.ndim - 1)), x, y), a, b)


def _rates(schedules: Sequence[Callable[[mx.array], mx.array]], step: mx.array) -> mx.array:
    """The members' learning rates, ``(P,)``. What several have in common is computed once."""
    scheduled = [s for s in schedules if isinstance(s, Scheduled)]
    if len(scheduled) < len(schedules):
        return mx.stack([schedule(step) for schedule in schedules])
    distinct: list[Any] = []
    for s in scheduled:
        if not any(_is_same(s.schedule, other) for other in distinct):
            distinct.append(s.schedule)
    places = [next(i for i, other in enumerate(distinct) if _is_same(s.schedule, other)) for s in scheduled]
    factors = mx.stack([schedule(step) for schedule in distinct])
    return once((mx.array([s.peak for s in scheduled]) * factors[mx.array(places)]).astype(mx.float32))


def _is_same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(getattr(a, "__dict__", None)) and vars(a) == vars(b))


def _constant(rate: mx.array) -> Callable[[mx.array], mx.array]:
    return lambda step: rate
