"""The parts of a model's forward pass, with the inputs that they get in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from lmxexp.counts import part_of
from lmxexp.interfaces import Aux, Batch, Loss
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path
from lmxexp.profile.part import Arrays, Part
from lmxexp.profile.record import Call, Inputs, kind_of, recording
from lmxexp.train.precision import cast

Reasons = dict[str, str]
"""Why something is not measured, by what it is."""


def whole(model: LanguageModel, loss: Loss, arrays: Arrays) -> Part:
    """All of the forward pass, from tokens to the loss."""
    others = {name: a for name, a in arrays.items() if name != "inputs"}
    call = lambda x, others: [loss(model, Batch(inputs=x, **others))[0]]
    return Part("whole", "", (), 1, model, model.trainable_parameters(), arrays["inputs"], others, call)


def parts(model: LanguageModel, loss: Loss, arrays: Arrays, dtype: mx.Dtype | None) -> tuple[list[Part], Reasons]:
    """What `whole` is composed of, in order.

    One forward pass that is not compiled is run, and the inputs of the first module of every kind are kept.

    Args:
        model: in training.
        loss: its share after the last norm is a part; a loss that asks the model for something else has none.
        arrays: a micro-batch.
        dtype: what parameters are cast to; None: they stay.

    Returns:
        The parts, and the modules that are none, with the reason.
    """
    watched = dict(_watched(model))
    own = model.trainable_parameters()
    tokens, segment_ids = arrays["inputs"], arrays.get("segment_ids")
    try:
        if dtype is not None:
            model.update(cast(own, dtype))
        with recording(watched.values()) as calls:
            h, aux = model.hidden(tokens, segment_ids=segment_ids)
            further, more = model.look_ahead(h, tokens, segment_ids=segment_ids)
    finally:
        model.update(own)
    found = [_embedding(model, tokens), *_modules(model, watched, calls), _head(model, loss, arrays, h, aux, further)]
    mx.eval([(part.x, part.others) for part in found], more)
    left_out = {path: "not called in a training pass" for path, m in watched.items() if id(m) not in calls}
    return found, left_out


def _watched(model: LanguageModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are parts, by path, in the order of the stack."""
    for i, layer in enumerate(model.layers):
        for name, child in layer.children().items():
            several = child if isinstance(child, list) else [child]
            for k, module in enumerate(several):
                if isinstance(module, nn.Module) and not _is_idle(module):
                    yield f"layers.{i}.{name}" + (f".{k}" if len(several) > 1 else ""), module
    yield "norm", model.norm
    for k, module in enumerate(model.ahead):
        yield f"ahead.{k}", module


def _is_idle(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module._p_1 == 1


def _modules(model: LanguageModel, watched: dict[str, nn.Module], calls: dict[int, Call]) -> list[Part]:
    """One part for each kind of module."""
    alike: dict[Any, list[tuple[int | None, nn.Module]]] = {}
    for path, module in watched.items():
        if id(module) in calls:
            layer, name = part_of(path)
            name = "final norm" if path == "norm" else name
            alike.setdefault((name, kind_of(module, calls[id(module)])), []).append((layer, module))
    order = ["mixer", "ffn", "norms", "block", "final norm", "ahead"]
    result = []
    for (name, _), members in sorted(alike.items(), key=lambda item: order.index(item[0][0])):
        module = members[0][1]
        inputs = Inputs.of(calls[id(module)])
        (first, x), *others = inputs.arrays.items()
        layers = tuple(dict.fromkeys(layer for layer, _ in members if layer is not None))
        count = sum(calls[id(member)].count for _, member in members)
        params = module.trainable_parameters()
        call = _calling(module, inputs, first)
        result.append(Part(name, type(module).__name__, layers, count, module, params, x, dict(others), call))
    return result


def _calling(module: Any, inputs: Inputs, first: str) -> Any:
    def call(x: mx.array, others: Arrays) -> list[mx.array]:
        args, kwargs = inputs.fill({first: x, **others})
        y = module(*args, **kwargs)
        if isinstance(y, mx.array):
            return [y]
        main, *beside = y
        losses = [v for aux in beside if isinstance(aux, dict) for k, v in aux.items() if k.endswith("_loss")]
        rest = [v for v in beside if isinstance(v, mx.array)]
        return [main, *rest, *losses]

    return call


def _some_of(model: LanguageModel, *, head: bool) -> dict[str, Any]:
    """The parameters of the embedding, or those of the head: the same where they are tied."""
    outside = ("embedding", "position_embedding", "embedding_norm", "logit_softcap")
    leaves = {path: a for path, a in by_path(model.trainable_parameters()).items() if path.split(".")[0] in outside}
    of_head = {path: a for path, a in leaves.items() if part_of(path)[1] == "head" or path.startswith("logit_softcap")}
    tied = not any(part_of(path)[1] == "head" for path in of_head)
    if head:
        chosen = of_head | {p: a for p, a in leaves.items() if tied and p.startswith("embedding.")}
    else:
        chosen = {path: a for path, a in leaves.items() if path not in of_head}
    tree: Any = tree_unflatten(list(chosen.items()))
    return tree


def _embedding(model: LanguageModel, tokens: mx.array) -> Part:
    call = lambda x, others: [model.embedded(x)]
    return Part("embedding", "", (), 1, model, _some_of(model, head=False), tokens, {}, call)


def _head(model: LanguageModel, loss: Loss, arrays: Arrays, h: mx.array, aux: Aux, further: list[mx.array]) -> Part:
    ahead = {f"ahead{k}": a for k, a in enumerate(further)}
    others = {**arrays, **ahead}
    constants = {name: mx.stop_gradient(a) for name, a in aux.items()}
    mx.eval(constants)

    def call(x: mx.array, others: Arrays) -> list[mx.array]:
        behind = _Behind(model, x, constants, [others[name] for name in ahead])
        batch = Batch(**{name: others[name] for name in arrays})
        return [loss(behind, batch)[0]]  # type: ignore[arg-type]

    return Part("head and loss", "", (), 1, model, _some_of(model, head=True), h, others, call)


class _Behind:
    """Stands for a model whose stack is done: what it would compute is given."""

    def __init__(self, model: LanguageModel, h: mx.array, aux: Aux, further: list[mx.array]):
        self._model, self._h, self._aux, self._further = model, h, aux, further

    def hidden(self, *args: Any, **kwargs: Any) -> tuple[mx.array, Aux]:
        return self._h, self._aux

    def look_ahead(self, *args: Any, **kwargs: Any) -> tuple[list[mx.array], Aux]:
        return self._further, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
