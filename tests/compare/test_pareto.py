import numpy as np
import pytest

from lmxexp.compare.pareto import front


def brute(points, maximise):
    sign = [-1 if more else 1 for more in maximise]
    kept = []
    for i, p in enumerate(points):
        if any(np.isnan(v) for v in p):
            continue
        beaten = False
        for q in points:
            better = [s * b < s * a for s, a, b in zip(sign, p, q, strict=True)]
            no_worse = [s * b <= s * a for s, a, b in zip(sign, p, q, strict=True)]
            beaten |= all(no_worse) and any(better)
        if not beaten:
            kept.append(i)
    return sorted(kept, key=lambda i: (points[i][0], i))


@pytest.mark.parametrize("maximise", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_the_front_is_what_none_dominates(n, maximise):
    rng = np.random.default_rng(n)
    for _ in range(10):
        points = rng.integers(0, 8, (n, 2)).astype(float)  # with ties
        points[rng.random(n) < 0.1, 1] = np.nan
        assert front(points, maximise) == brute(points.tolist(), maximise)


def test_three_coordinates():
    points = np.random.default_rng(0).random((30, 3))
    assert front(points) == brute(points.tolist(), (False,) * 3)


def test_equal_points_are_all_on_it():
    assert front([[1, 1], [2, 2], [1, 1]]) == [0, 2]


def test_nothing():
    assert front([]) == []
    assert front(np.empty((0, 2))) == []
    assert front([[np.nan, 1.0]]) == []
