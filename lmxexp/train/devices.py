"""What training asks of the other processes that train the same model; `lmxexp.parallel` is that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import mlx.core as mx

from lmxexp.interfaces import Aux


class Devices(Protocol):
    """Several processes, each with a device and a share of every batch. All make the same calls in the same order: each
    of those below waits for the others.

    A process by itself has None in its place, and computes nothing for it.
    """

    rank: int
    size: int
    by_parts: bool
    """Whether gradients are averaged after each part of a batch, because no device keeps a whole one; else once a
    step."""
    state: dict[str, mx.array]
    """What a compiled step reads of the host."""

    # --- within the step, traced ---

    def draws(self) -> AbstractContextManager[None]:
        """Within, random numbers of a batch's rows are those of the global batch's."""
        ...

    def parameters(self, own: Any) -> Any:
        """The tree of whole parameters, cast for the forward pass, of which each process may keep a part."""
        ...

    def weighed(self, loss: mx.array, aux: Aux) -> tuple[mx.array, Aux]:
        """A loss whose gradients' plain average over the processes is the gradient of the global batch's mean over its
        weighted targets."""
        ...

    def mean(self, gradient: Any, loss: mx.array, aux: Aux) -> tuple[Any, mx.array, Aux]:
        """Gradient, loss and scalars of the global batch, from those of a `weighed` loss."""
        ...

    def average(self, total: Any) -> Any:
        """The plain average of a tree."""
        ...

    def norm(self, gradient: Any) -> mx.array:
        """The global norm of a gradient of which each process may have a part."""
        ...

    def stop(self) -> mx.array:
        """How many processes are asked to stop, the same number in each."""
        ...

    # --- between steps ---

    def ask_to_stop(self, asked: bool) -> None:
        """What the next step's `stop` counts of this process. Waits for nobody."""
        ...

    def meet(self) -> None:
        """Return once all processes have come here; the device has nothing to wait for."""
        ...

    def whole(self, parameters: Any) -> Any:
        """A tree of whole parameters, of the process's own parts."""
        ...

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Sums in double precision."""
        ...

    def save(self, trees: Mapping[str, Any], write: Callable[[Iterable[tuple[str, Any]]], Any]) -> None:
        """Call ``write`` on rank 0 with the trees made whole, one at a time."""
        ...

    def load(self, read: Callable[[], Mapping[str, mx.array]], name: str, tree: Any = None) -> dict[str, mx.array]:
        """The process's own parts of what rank 0 reads.

        Args:
            read: called there.
            name: ``model``, ``optimizer`` or ``callbacks``.
            tree: what it is for; other shapes are an error. None: nothing is known of them.
        """
        ...
