"""A guard against silent retracing of compiled functions."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

Signature = dict[str, str]


class RetraceError(RuntimeError):
    """A compiled function was traced again. Compiling costs seconds; a loop that retraces is slow without a word."""


class CompileSentinel:
    """Counts the traces of each compiled function and fails on one too many, naming what changed.

    The Python body of a compiled function runs once per trace, so `traced` is called from inside it.

    Args:
        allowed: traces of each function before `RetraceError`.
    """

    def __init__(self, allowed: int = 1):
        self.allowed = allowed
        self.traces: dict[str, int] = {}
        self._signatures: dict[str, Signature] = {}

    def traced(self, name: str, **inputs: Any) -> None:
        """Note a trace of function ``name``. ``inputs``: trees of arrays and Python values that its trace depends
        on."""
        signature = _signature(inputs)
        self.traces[name] = self.traces.get(name, 0) + 1
        if self.traces[name] > self.allowed:
            raise RetraceError(
                f"the compiled {name} was traced {self.traces[name]} times, {self.allowed} expected: "
                + _difference(self._signatures[name], signature)
            )
        self._signatures[name] = signature


def _signature(inputs: Mapping[str, Any]) -> Signature:
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}".replace("mlx.core.", "") if isinstance(leaf, mx.array) else repr(leaf)
        for path, leaf in tree_flatten(dict(inputs))
    }


def _difference(before: Signature, after: Signature) -> str:
    changes = [
        f"{path} was {before.get(path, 'absent')}, is {after.get(path, 'absent')}"
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    ]
    if not changes:
        return "no input changed shape or type, so a Python value that the function closes over did"
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    return "; ".join(changes[:3]) + more
