import numpy as np
import pytest

from lmxexp.compare.scaling import fit
from lmxexp.compare.scaling_checks import distinct, warnings
from lmxexp.interfaces import ConfigError
from tests.compare.test_scaling import BUDGETS, SIZES, runs


@pytest.mark.parametrize(
    ("values", "n"),
    [([], 0), ([1.0], 1), ([1.0, 1.005], 1), ([1.0, 1.02], 2), ([3.0, 1.0, 3.01, 1.001, 2.0], 3)],
)
def test_distinct_values(values, n):
    assert distinct(np.log(values)) == n


def changed(which, value):
    n, d, loss = (v.copy() for v in runs(0.0))
    {"n": n, "d": d, "loss": loss}[which][3] = value
    return n, d, loss


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (changed("loss", np.nan), "loss=nan of 1 run: .* leave them out"),
        (changed("loss", np.inf), "loss=inf"),
        (changed("n", 0.0), "n_params=0 of 1 run"),
        (changed("d", -1.0), "n_tokens=-1"),
        (runs(0.0, sizes=SIZES[:2]), "20 runs of 2 sizes and 5 token budgets cannot determine .* at least 3 sizes"),
        (runs(0.0, sizes=SIZES[:1], budgets=BUDGETS[:1]), "2 runs of 1 size and 1 token budget cannot"),
        (runs(0.0, sizes=SIZES[:3], budgets=BUDGETS[:1], seeds=1), "leave nothing to tell .* at least 4 runs"),
        (
            (np.array([1e6, 1e7, 1e8, 1e6, 1e7]), np.array([1e8, 1e9, 1e7, 1e7, 1e8]), np.ones(5)),
            "5 runs of 3 sizes and 3 token budgets leave nothing to tell .* at least 6 runs",
        ),
        ((SIZES, SIZES * 20, SIZES / SIZES + 1), "tokens grow with size in all of them"),
    ],
)
def test_points_that_determine_nothing(points, message):
    with pytest.raises(ConfigError, match=message):
        fit(*points)


def test_other_arguments():
    with pytest.raises(ConfigError, match="bootstrap=5 must be at least 20"):
        fit(*runs(0.0), bootstrap=5)
    n, d, loss = runs(0.0)
    with pytest.raises(ValueError, match="must be equally long"):
        fit(n, d[1:], loss)


def test_warnings_of_bounds_and_intervals():
    names, bounds = ("E", "A", "alpha"), np.array([[-10.0, 1.0], [-10.0, 2.0], [0.0, 3.0]])
    good = {"E": (1.0, 2.0), "A": (1.0, 2.0), "alpha": (0.1, 0.4)}
    assert warnings(names, np.array([0.5, 0.5, 0.3]), bounds, good) == []
    (one,) = warnings(names, np.array([-10.0, 0.5, 0.3]), bounds, good)
    assert one.startswith("E sits on its lower bound, 0: the losses show no floor yet")
    (one,) = warnings(names, np.array([0.5, 2.0, 0.3]), bounds, good)
    assert one.startswith("A sits on its upper bound")
    told = warnings(names, np.array([0.5, 0.5, 0.0]), bounds, good | {"alpha": (0.0, 0.4)})
    assert [t.partition(":")[0] for t in told] == [
        "alpha sits on its lower bound, 0",
        "the 95 % interval of alpha includes 0",
    ]
