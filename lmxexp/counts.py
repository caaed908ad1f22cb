"""Parameters, FLOPs and state of a model, by part, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path

IN_ORDER = ("embedding", "mixer", "ffn", "norms", "head")
"""How parts are listed; what a model has beside these comes after."""


@dataclass(frozen=True)
class Part:
    """Counts of one part."""

    params: int = 0
    """Trainable."""
    active_params: int = 0
    """Of those, what one token passes through: of experts, the chosen ones."""
    flops: int = 0
    """Per token, forward: products with weights."""
    mixing_flops: int = 0
    """Per token, forward: what mixers do between positions."""

    def __add__(self, other: Part) -> Part:
        return Part(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Parts = dict[str, Part]


def by_layer(model: LanguageModel, seq_len: int) -> tuple[list[Parts], Parts]:
    """The counts of each layer, and of what is no layer, by part.

    Args:
        seq_len: positions over which what mixers do is averaged.
    """
    layers: list[Parts] = [{} for _ in model.layers]
    others: Parts = {}

    def count(path: str, **counts: int) -> None:
        layer, name = part_of(path)
        parts = others if layer is None else layers[layer]
        parts[name] = parts.get(name, Part()) + Part(**counts)

    for path, p in by_path(model.trainable_parameters()).items():
        count(path, params=p.size, active_params=p.size)
    mixers = {id(mixer) for mixer in model.mixers(ahead=True)}
    for path, module in _modules(model):
        if isinstance(module, nn.Linear):
            count(path, flops=2 * module.weight.size)
            continue
        if hasattr(module, "weight_flops"):
            weights, others_of_experts = _of_experts(module)
            active = module.weight_flops() // 2
            idle = weights - active + others_of_experts - others_of_experts * active // max(weights, 1)
            count(path, flops=module.weight_flops(), active_params=-idle)
        if id(module) in mixers:
            count(path, mixing_flops=module.mixing_flops(seq_len))
    count("embedding.lm_head", flops=2 * model.embedding.head_size())
    if model.ahead:
        count("ahead", flops=2 * len(model.ahead) * model.vocab_size * model.d_model)  # each uses the head once more
    return layers, others


def _modules(model: LanguageModel) -> list[tuple[str, Any]]:
    """By path. Some have methods that ``nn.Module`` does not know of."""
    return model.named_modules()


def _of_experts(module: nn.Module) -> tuple[int, int]:
    """Weights of experts, which are stacks of matrices, and the parameters that stand beside a stack (biases)."""
    weights = beside = 0
    for layer in module.modules():
        own = [value for value in layer.values() if isinstance(value, mx.array)]
        stacks = sum(p.size for p in own if p.ndim > 2)
        weights += stacks
        beside += sum(p.size for p in own) - stacks if stacks else 0
    return weights, beside


def part_of(path: str) -> tuple[int | None, str]:
    """The layer and the part that a module or parameter belongs to, by its path."""
    first, *rest = path.split(".")
    if first == "layers":
        name = rest[1] if len(rest) > 1 else "block"
        part = {"self_attn": "mixer", "mlp": "ffn"}.get(name, "norms" if "norm" in name else "block")
        return int(rest[0]), part
    if first == "embedding":
        return None, "head" if rest[:1] == ["lm_head"] else "embedding"
    return None, "norms" if "norm" in first else first.replace("_", " ")


def summed(several: Iterable[Mapping[str, Part]]) -> Parts:
    """The counts of several parts of a model together, in order."""
    result: Parts = {}
    for parts in several:
        for name, part in parts.items():
            result[name] = result.get(name, Part()) + part
    order = [*IN_ORDER, *sorted(result.keys() - set(IN_ORDER))]
    return {name: result[name] for name in order if name in result}


def total(parts: Mapping[str, Part]) -> Part:
    """All parts together."""
    return sum(parts.values(), Part())


def layout(names: Sequence[str], pattern: Mapping[str, Sequence[str] | None]) -> str:
    """The stack in one line: ``dense + 2 x [local local global] + local``.

    Args:
        names: of every layer, from `lmxexp.model.language_model.lay_out`.
        pattern: what they were laid out by.
    """
    first, repeat, last = (list(pattern.get(part) or []) for part in ("first", "repeat", "last"))
    between = len(names) - len(first) - len(last)
    times, cut = divmod(between, len(repeat)) if repeat else (0, 0)
    pieces = [
        " ".join(first),
        f"{times} x [{' '.join(repeat)}]" if times else "",
        " ".join(repeat[:cut]),
        " ".join(last),
    ]
    return " + ".join(piece for piece in pieces if piece)
