"""The whole number at which a growing quantity comes closest to a target, in few evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

ROUND = (16, 8, 4, 2, 1)
"""Multiples of these are preferred, in this order: products with wide, even sides are fast."""

ENOUGH = 0.25
"""The part of the tolerance within which a rounder number is taken without looking at odder ones."""

_LARGEST = 2**22
_MISSES = 3
"""Impossible numbers in a row after which a step is given up."""


@dataclass(frozen=True)
class Found:
    """The best number and what it gives."""

    number: int
    value: float
    residual: float
    """``value / target - 1``."""


@dataclass
class Search:
    """Looks for the number at which ``value`` meets ``target``.

    The target is bracketed by doubling or halving from a guess, and the bracket is narrowed by interpolation on the
    multiples of the first step, then of the second, and so on: a bracket of neighbours on one step is halved by the
    next. The search ends at the first number whose residual is at most ``enough``; without one, once all steps are
    through.

    Args:
        value: of a number, None where the number is impossible. It must not fall as the number grows; flat parts do no
            harm.
        target: above 0.
        enough: a residual that needs no better.
    """

    value: Callable[[int], float | None]
    target: float
    enough: float
    known: dict[int, float | None] = field(default_factory=dict)
    """All that was evaluated, in order."""

    def run(self, guess: int, steps: Sequence[int] = ROUND) -> Found | None:
        """The closest number found, the first of equals; None if all that were tried are impossible.

        Args:
            guess: where to begin; at least 1.
            steps: in order of preference.
        """
        low, high = None, None  # numbers whose values are at most the target, and above it
        for step in steps:
            if low is None or high is None:
                low, high = self._bracket(guess, step, low, high)
            if low is not None and high is not None:
                low, high = self._narrow(low, high, step)
            if self._good():
                break
        return self.best()

    def best(self) -> Found | None:
        """The closest so far, the first of equals."""
        found = [Found(n, v, v / self.target - 1) for n, v in self.known.items() if v is not None]
        return min(found, key=lambda f: abs(f.residual), default=None)

    def flat(self) -> bool:
        """Whether the number was seen to change nothing, over a factor of four at least."""
        possible = {n: v for n, v in self.known.items() if v is not None}
        return len(set(possible.values())) == 1 and max(possible) >= 4 * min(possible)

    def _good(self) -> bool:
        best = self.best()
        return best is not None and abs(best.residual) <= self.enough

    def _at(self, number: int) -> float:
        value = self._try(number)
        assert value is not None
        return value

    def _try(self, number: int) -> float | None:
        if number not in self.known:
            self.known[number] = self.value(number)
        return self.known[number]

    def _bracket(self, guess: int, step: int, low: int | None, high: int | None) -> tuple[int | None, int | None]:
        """A possible number on each side of the target, as far as multiples of ``step`` reach."""
        number = low or high or self._possible(max(round(guess / step), 1) * step, step, 0, _LARGEST)
        while number is not None and not self._good():
            if self._at(number) <= self.target:
                low = number
                if high is not None or number * 2 > _LARGEST or self.flat():
                    break
                number = self._possible(-(-number * 2 // step) * step, step, number, _LARGEST)
            else:
                high = number
                if low is not None or self.flat():
                    break
                number = self._possible(max(number // 2 // step, 1) * step, step, 0, number)
        return low, high

    def _narrow(self, low: int, high: int, step: int) -> tuple[int, int]:
        """Neighbours among the possible multiples of ``step``, or whatever is good enough already."""
        slow = 0
        while not self._good():
            below, above, width = self._at(low), self._at(high), high - low
            # Where the line through both values meets the target; of a curve that moves one end only, the middle.
            share = 0.5 if slow == 2 else (self.target - below) / (above - below)
            between = self._possible(round((low + share * width) / step) * step, step, low, high)
            if between is None:
                break
            low, high = (between, high) if self._at(between) <= self.target else (low, between)
            slow = slow + 1 if slow < 2 and 2 * (high - low) > width else 0
        return low, high

    def _possible(self, number: int, step: int, low: int, high: int) -> int | None:
        """The possible multiple of ``step`` nearest to ``number`` and strictly between two others; None after some
        misses."""
        first, last = (low // step + 1) * step, (-(-high // step) - 1) * step
        if first > last:
            return None
        number = min(max(number, first), last)
        misses = 0
        for away in range(0, last - first + step, step):
            for candidate in dict.fromkeys((number + away, number - away)):
                if not first <= candidate <= last:
                    continue
                if self._try(candidate) is not None:
                    return candidate
                misses += 1
                if misses == _MISSES:
                    return None
        return None
