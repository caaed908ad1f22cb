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
        allowed: traces of a function, by its name, where batches have several shapes; of all others, one. Each has to
            be of another shape of its input ``batch``.
    """

    def __init__(self, allowed: Mapping[str, int] | None = None):
        self.allowed = allowed or {}
        self.traces: dict[str, int] = {}
        self._signatures: dict[str, list[Signature]] = {}

    def traced(self, name: str, **inputs: Any) -> None:
        """Note a trace of function ``name``. ``inputs``: trees of arrays and Python values that its trace depends
        on."""
        signature, earlier = _signature(inputs), self._signatures.setdefault(name, [])
        self.traces[name] = self.traces.get(name, 0) + 1
        again = [known for known in earlier if _shapes(known) == _shapes(signature)]
        allowed = self.allowed.get(name, 1)
        if again or len(earlier) >= allowed:
            raise RetraceError(
                f"the compiled {name} was traced {self.traces[name]} times, {allowed} expected: "
                + _difference((again or earlier or [{}])[-1], signature)
            )
        earlier.append(signature)


def _signature(inputs: Mapping[str, Any]) -> Signature:
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}".replace("mlx.core.", "") if isinstance(leaf, mx.array) else repr(leaf)
        for path, leaf in tree_flatten(dict(inputs))
    }


def _shapes(signature: Signature) -> Signature:
    """Of the batch, without its types, which are no reason to be traced again."""
    return {path: leaf.partition("[")[2] for path, leaf in signature.items() if path.split(".")[0] == "batch"}


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
