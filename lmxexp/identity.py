"""What makes two runs the same run: all that their numbers depend on, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LENGTH = 16
"""Hexadecimal digits: 64 bits. Among a million runs two share an identity with probability 3e-8."""

SWEEP_NODES = ("sweep", "match", "tune")
"""What a sweep reads of a configuration, and a run does not: how it came by the values, which are what counts."""

_LEFT_OUT = frozenset(("name", "tags", "resume", "choice", "logger", "debug", *SWEEP_NODES))
"""Names, places and reports."""
_SINCE_PACKING = {"document_mask": False, "packing": "stream", "order": "random"}
"""Settings of data that there were none of, and what everything was before."""
_LEFT_OUT_OF_TRAIN = frozenset(
    ("keep", "memory_limit_gb", "self_test", "parallel", "remat", "profile", "profile_capture")
)
"""Can end a run, or take disk space or time; cannot change a number, beyond the order in which many are added up."""


def identity(config: Mapping[str, Any], fingerprint: str) -> str:
    """A hash of a run's resolved configuration and of its data.

    Args:
        config: resolved, plain containers.
        fingerprint: of the data, `lmxexp.interfaces.Source.fingerprint`. It stands for the files: their paths, in the
            nodes ``data`` and ``tokenizer``, are left out. So is that of the run which a branch comes off: its own
            identity stands for it.
    """
    kept = {key: _kept(key, value) for key, value in config.items() if key not in _LEFT_OUT}
    if kept.get("branch") is None:  # from its own beginning: as before there were branches
        kept.pop("branch", None)
    if kept.get("ramp") in (None, {"_target_": "lmxexp.model.none.none"}):  # as before there were ramps
        kept.pop("ramp", None)
    text = json.dumps([kept, fingerprint], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _kept(group: str, node: Any) -> Any:
    if group == "train" and isinstance(node, Mapping):
        return {key: value for key, value in node.items() if key not in _LEFT_OUT_OF_TRAIN}
    if group in ("data", "tokenizer", "branch"):
        node = _without_paths(node)
    if group == "data" and isinstance(node, Mapping):
        return {key: value for key, value in node.items() if key not in _SINCE_PACKING or value != _SINCE_PACKING[key]}
    return node


def _without_paths(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            k: _without_paths(v) for k, v in node.items() if not (k == "path" or str(k).endswith(("_path", "_dir")))
        }
    return node
