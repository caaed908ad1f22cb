"""Turns, medians and ratios, by a clock that is told what time it is."""

import pytest

from lmxexp.bench import measure
from lmxexp.bench.measure import Contestant, Spread


class Clock:
    def __init__(self):
        self.now, self.turns = 0.0, []

    def __call__(self):
        return self.now


class Fake(Contestant):
    """Each step takes the next of some durations, or fails."""

    def __init__(self, name, clock, durations):
        super().__init__()
        self.name, self.clock, self.durations = name, clock, list(durations)

    def run(self, n_steps):
        self.clock.turns.append(self.name)
        duration = self.durations.pop(0)
        if duration is None:
            raise MemoryError("no room\nfor this")
        self.clock.now += n_steps * duration
        return [0.0] * n_steps


def test_contestants_take_turns_and_each_begins_once():
    clock = Clock()
    names = "abc"
    found = measure.rounds([Fake(n, clock, [1.0] * 3) for n in names], 3, 2, clock)
    assert clock.turns == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert list(found) == list(names)


def test_seconds_are_those_of_a_step():
    clock = Clock()
    found = measure.rounds([Fake("a", clock, [3.0, 1.0, 2.0]), Fake("b", clock, [6.0, 1.0, 8.0])], 3, 4, clock)
    assert found["a"].seconds == [3.0, 1.0, 2.0]
    spread = Spread(found["a"].seconds)
    assert (spread.median, spread.low, spread.high) == (2.0, 1.0, 3.0)
    # By rounds: of the medians alone it would be 3.
    assert measure.ratios(found["b"].seconds, found["a"].seconds) == Spread([2.0, 1.0, 4.0])


def test_one_that_fails_is_not_asked_again_and_the_others_go_on():
    clock = Clock()
    found = measure.rounds([Fake("a", clock, [1.0, None]), Fake("b", clock, [1.0] * 3)], 3, 1, clock)
    assert found["a"].failure == "MemoryError: no room for this"
    assert clock.turns.count("a") == 2
    assert found["b"].seconds == [1.0] * 3
    assert found["b"].failure is None


def test_a_long_reason_is_cut():
    assert len(measure.reason(RuntimeError("x" * 1000))) < 330


def test_a_contestant_s_memory_is_its_own():
    mx = pytest.importorskip("mlx.core")
    before = mx.zeros((1000, 1000))
    mx.eval(before)
    contestant = Contestant()
    contestant.reset_peak()
    own = mx.zeros((500, 1000)) + 1
    mx.eval(own)
    assert contestant.peak_gb() == pytest.approx(2e-3, rel=0.1)
