"""Which points of a sweep one step can train together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lmxexp.identity import SWEEP_NODES

_NO_MATTER = ("name", "tags", "resume", "choice", "logger", "debug", "schedule", *SWEEP_NODES)
"""Each member has its own of these. A schedule makes one number a step, whatever its kind."""

_NUMBERS = ("optim", "param_groups", "loss")
"""Nodes whose numbers enter the step as arrays."""


def groups(configs: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places in ``configs`` that belong together, in order: configurations alike but for what enters as arrays.

    That is the seeds, the schedule, the numbers of optimizer and loss, and those of ``model.init``, which the first
    weights depend on alone. Whether the optimizers have a use for arrays there shows when the step is traced.

    Args:
        configs: resolved, plain.
    """
    found: dict[str, list[int]] = {}
    for i, config in enumerate(configs):
        found.setdefault(json.dumps(shape_of(config), sort_keys=True, default=str), []).append(i)
    return list(found.values())


def shape_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what members may differ in."""
    kept = {key: node for key, node in config.items() if key not in (*_NO_MATTER, "seed")}
    kept |= {key: _without_numbers(kept.get(key)) for key in _NUMBERS}
    kept["data"] = _without_seeds(kept.get("data") or {})
    model = dict(kept.get("model") or {})
    kept["model"] = model | {"init": _without_numbers(model.get("init"))}
    return {**kept, "until": (config.get("sweep") or {}).get("until")}


def _without_seeds(node: Any) -> Any:
    """Of data, and of the sources that it may be made of."""
    return {k: _without_seeds(v) for k, v in node.items() if k != "seed"} if isinstance(node, Mapping) else node


def _without_numbers(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _without_numbers(v) for k, v in node.items()}
    if isinstance(node, list | tuple):
        return [_without_numbers(v) for v in node]
    return "a number" if isinstance(node, int | float) and not isinstance(node, bool) else node
