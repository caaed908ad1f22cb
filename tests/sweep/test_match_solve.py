"""The search for a whole number, against looking at every one."""

import math

import numpy as np
import pytest

from lmxexp.sweep.solve import ROUND, Search


def brute_force(value, target, enough, limit):
    """The roundest number that is good enough; else the closest of all."""
    possible = {n: abs(value(n) / target - 1) for n in range(1, limit) if value(n) is not None}
    for step in ROUND:
        if good := [n for n, off in possible.items() if n % step == 0 and off <= enough]:
            return step, good
    closest = min(possible.values())
    return 1, [n for n, off in possible.items() if off == closest]


FUNCTIONS = {
    "line": lambda n: 1536 * n + 221_184,
    "curve": lambda n: 12 * n * n + 700 * n,
    "steps of experts": lambda n: 250_000 + 98_304 * max(1, round(n / 2 / 8)),
    "width that follows": lambda n: n * (256 + 12 * n + 9 * max(16, round(8 * n / 3 / 16) * 16)),
    "cube": lambda n: n**3,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("guess", [1, 70, 341, 1500])
def test_every_number(name, guess):
    value = FUNCTIONS[name]
    rng = np.random.default_rng(7)
    for share in rng.uniform(0.02, 0.9, 25):
        target = int(value(1000) * share)
        enough = float(rng.choice([0.0, 0.0025, 0.02]))
        search = Search(value, target, enough)
        found = search.run(guess)
        step, good = brute_force(value, target, enough, 2000)
        assert found.value == value(found.number)
        assert found.residual == found.value / target - 1
        if abs(found.residual) <= enough:
            assert found.number in good
            assert found.number % step == 0
        else:
            assert abs(found.residual) == min(abs(value(n) / target - 1) for n in range(1, 2000))
        assert len(search.known) <= 30


def test_few_evaluations():
    """Each costs a model. Of a line: a bracket, its inside on multiples of 16, and one for each halving after that."""
    value = FUNCTIONS["line"]
    for target in range(300_000, 1_500_000, 17_001):
        search = Search(value, target, 0.0025)
        search.run(352)
        assert len(search.known) <= 10


def test_impossible_numbers():
    """A head's width is even, and heads divide the model's: multiples of 24 alone."""
    value = lambda n: n * n if n % 24 == 0 else None
    for width in (96, 216, 744):
        found = Search(value, width**2, 0.0001).run(400, [math.lcm(n, 12) for n in ROUND])
        assert found.number == width
    found = Search(value, 250**2, 0.0001).run(400, [math.lcm(n, 12) for n in ROUND])
    assert found.number == 240
    assert Search(lambda n: None, 100, 0.01).run(8) is None
    search = Search(lambda n: None if n % 16 else n, 1000, 0.0001)
    assert search.run(100).number in (992, 1008)
    assert len(search.known) < 30


@pytest.mark.parametrize(("target", "number"), [(1, 1), (10**12, 2**22)])
def test_targets_out_of_reach(target, number):
    found = Search(lambda n: 1000 + n, target, 0.001).run(300)
    assert number / 2 <= found.number <= number
    assert abs(found.residual) > 0.001


@pytest.mark.parametrize("target", [500, 5000])
def test_a_number_that_changes_nothing(target):
    search = Search(lambda n: 1000, target, 0.01)
    search.run(300)
    assert search.flat()
    assert len(search.known) < 8
    moving = Search(lambda n: 1000 + n // 64, target, 0.01)
    moving.run(300)
    assert not moving.flat()
