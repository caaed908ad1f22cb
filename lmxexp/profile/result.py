"""What a profile is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One part of a step. Times are milliseconds a step, all calls together, as the part took by itself."""

    part: str
    kind: str = ""
    """The module's class, where a part may be of several."""
    layers: tuple[int, ...] = ()
    calls: float = 1
    """In a step."""
    forward_ms: float | None = None
    backward_ms: float | None = None
    other_ms: float | None = None
    """Of what is neither forward nor backward."""
    forward_flops: int = 0
    """FLOPs of its products in a step; the backward pass has twice as many."""

    @property
    def ms(self) -> float:
        return (self.forward_ms or 0.0) + (self.backward_ms or 0.0) + (self.other_ms or 0.0)

    @property
    def gflops(self) -> float | None:
        """GFLOP/s, forward and backward; None: it has no products, or no time that the clock can tell."""
        return 3e-6 * self.forward_flops / self.ms if self.forward_flops and self.ms else None


@dataclass(frozen=True)
class Profile:
    """Where the time of a training step goes."""

    step_ms: float
    """The whole step as the trainer computes it, from one batch on the host to the next."""
    forward_ms: float
    """The whole forward pass, all micro-batches."""
    backward_ms: float
    """That and the backward pass, less the forward pass."""
    rows: list[Row]
    """Parts of the step."""
    beside: list[Row]
    """What the host does between steps, or while the device computes."""
    other: dict[str, str]
    """What is not measured by itself, and why."""
    about: dict[str, Any]
    """Model, sizes, device."""

    @property
    def remainder(self) -> Row:
        """What the whole takes beyond the sum of the parts; negative where the compiler makes the whole faster."""
        of_layers = [row for row in self.rows if row.forward_ms is not None]
        forward = self.forward_ms - sum(row.forward_ms or 0.0 for row in of_layers)
        backward = self.backward_ms - sum(row.backward_ms or 0.0 for row in of_layers)
        rest = self.step_ms - sum(row.ms for row in self.rows) - forward - backward
        return Row("fused, overlapped or unaccounted", forward_ms=forward, backward_ms=backward, other_ms=rest)

    @property
    def gflops(self) -> float:
        return 3e-6 * self.about["forward_flops"] / self.step_ms

    def share(self, row: Row) -> float:
        """Of the step."""
        return row.ms / self.step_ms

    def to_json(self) -> dict[str, Any]:
        """As ``profile.json`` has it; milliseconds a step."""
        row = lambda r: {**asdict(r), "layers": list(r.layers), "ms": r.ms, "share": self.share(r), "gflops": r.gflops}
        return {
            **self.about,
            "step_ms": self.step_ms,
            "forward_ms": self.forward_ms,
            "backward_ms": self.backward_ms,
            "gflops": self.gflops,
            "parts": [row(r) for r in self.rows],
            "remainder": row(self.remainder),
            "beside": [row(r) for r in self.beside],
            "other": self.other,
        }
