import pytest

from lmxexp.compare.axes import ABSENT, Axis
from lmxexp.compare.inside import varies, warnings
from tests.compare.made_runs import memory_run


def arms_of(*values):
    """An arm for each tuple, with one run for each value of the axis."""
    arms = [[memory_run(seed=i) for i, _ in enumerate(of_arm)] for of_arm in values]
    axis = Axis("optim.eps", "optim.eps", {run: v for runs, of in zip(arms, values, strict=True)
                                           for run, v in zip(runs, of, strict=True)})  # fmt: skip
    return axis, arms


@pytest.mark.parametrize(
    ("values", "inside", "said"),
    [
        ([(1, 1), (1, 1)], False, []),
        ([(1, 1), (2, 2)], False, ["the arms differ in optim.eps as well (optim.eps=1, optim.eps=2)"]),
        ([(1, 2), (1, 2)], True, ["inside the arms optim.eps differs (optim.eps=1, optim.eps=2): runs are paired"]),
        ([(1, 2), (1, 1)], True, ["inside the arms optim.eps differs, and not alike in all"]),
        ([(1, ABSENT), (1, 1)], True, ["inside the arms optim.eps differs, and not alike in all (optim.eps=1): only"]),
        ([(1, 2), ()], True, ["inside the arms optim.eps differs (optim.eps=1, optim.eps=2): runs are paired"]),
    ],
)
def test_what_is_said(values, inside, said):
    axis, arms = arms_of(*values)
    assert varies(axis, arms) == inside
    found = warnings([axis], arms)
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))


def test_many_values_are_counted():
    axis, arms = arms_of(tuple(range(9)), tuple(range(9)))
    (text,) = warnings([axis], arms)
    assert "optim.eps=3, … 9 values in all" in text
    assert "optim.eps=4" not in text
