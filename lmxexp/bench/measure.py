"""How contestants are timed: in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from lmxexp import device

Clock = Callable[[], float]
"""Seconds, from any beginning."""


@dataclass(frozen=True)
class Spread:
    """One number for each round."""

    rounds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        return min(self.rounds)

    @property
    def high(self) -> float:
        return max(self.rounds)


@dataclass(frozen=True)
class Turn:
    """Some steps of one contestant."""

    seconds: float
    """Of those that were asked for."""
    losses: list[float]
    """Of all that were taken, in nats."""


class Contestant:
    """A training step with its model and optimizer, which can be run.

    Memory is MLX's here, less what its arrays took before the contestant was made.

    Attributes:
        name: as the tables have it.
        note: where its work differs from the others' in what no check shows.
    """

    name = ""
    note = ""

    def __init__(self) -> None:
        self._held_gb = mx.get_active_memory() / device.GB

    def run(self, n_steps: int) -> list[float]:
        """Train so many steps and wait for the device; the loss of each, in nats."""
        raise NotImplementedError

    def turn(self, n_steps: int, clock: Clock) -> Turn:
        """`run`, timed."""
        start = clock()
        losses = self.run(n_steps)
        return Turn(clock() - start, losses)

    def n_params(self) -> int:
        """Trainable parameters; a tied matrix counts once."""
        raise NotImplementedError

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take fp32 weights, by their names in lmxexp's model. Before the first step."""
        raise NotImplementedError

    def loss(self, batch: Any) -> float:
        """The mean cross-entropy of a batch in fp32, in nats. Before the first step."""
        raise NotImplementedError

    def reset_peak(self) -> None:
        """Start a new measurement of `peak_gb`."""
        device.clear_cache()
        device.reset_peak_memory()

    def peak_gb(self) -> float | None:
        """The most memory since `reset_peak`, 1e9 bytes; None where it is not known."""
        return device.peak_memory_gb() - self._held_gb


@dataclass
class Timed:
    """What was measured of one contestant."""

    seconds: list[float] = field(default_factory=list)
    """Of one step, by round."""
    failure: str | None = None


def rounds(
    contestants: Sequence[Contestant], n_rounds: int, n_steps: int, clock: Clock = time.perf_counter
) -> dict[str, Timed]:
    """Time every contestant once in each round; who begins changes from round to round.

    Args:
        contestants: warmed up: each has compiled what it compiles.
        n_steps: of a turn.

    Returns:
        By name. One that fails is not asked again; the others go on.
    """
    found = {c.name: Timed() for c in contestants}
    for i in range(n_rounds):
        first = i % max(len(contestants), 1)
        for contestant in [*contestants[first:], *contestants[:first]]:
            timed = found[contestant.name]
            if timed.failure is not None:
                continue
            try:
                timed.seconds.append(contestant.turn(n_steps, clock).seconds / n_steps)
            except Exception as error:  # the other contestants' rounds must not be lost
                timed.failure = reason(error)
    return found


def ratios(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """Round by round, how many times as long as the reference's step another's takes."""
    return Spread([other / own for other, own in zip(seconds, reference, strict=True)])


def reason(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    known = type(error).__name__ in ("ConfigError", "Disagreement")
    short = text if len(text) <= 300 else f"{text[:300]}…"
    return short if known and short else f"{type(error).__name__}: {short or '(no message)'}"
