import pytest

from lmxexp.compare.comparison import compare_runs
from lmxexp.compare.looks import GREY, MOST_NAMED, look_of, looks, naming, ordered, shortened, unnamed
from tests.compare.made_runs import memory_run


def comparison_of(n, higher=None):
    runs = [memory_run({}, {"optim.learning_rate": (i + 1) / 1000}, loss=3 + ((i * 7) % n) / 100) for i in range(n)]
    return compare_runs(runs, higher=higher)


def test_every_arm_has_a_look_of_its_own_and_the_baseline_is_black():
    comparison = comparison_of(MOST_NAMED)
    every = looks(comparison)
    assert list(every) == [arm.label for arm in comparison.arms]
    assert every[comparison.baseline.label].colour == "#000000"
    assert len({(look.colour, look.dash) for look in every.values()}) == MOST_NAMED
    assert len({(look.colour, look.plotly_dash) for look in every.values()}) == MOST_NAMED
    assert len({(look.colour, look.marker) for look in every.values()}) == MOST_NAMED
    assert unnamed(every) == 0


@pytest.mark.parametrize("higher", [False, True])
def test_of_many_arms_the_baseline_and_the_best_are_named(higher):
    comparison = comparison_of(30, higher)
    every = looks(comparison)
    named = [label for label, look in every.items() if look.named]
    means = {row.arm.label: row.sample.mean for row in comparison.rows[1:]}
    best = sorted(means, key=means.__getitem__, reverse=higher)[: MOST_NAMED - 1]
    assert set(named) == {comparison.baseline.label, *best}
    assert unnamed(every) == 30 - MOST_NAMED
    assert {look.colour for look in every.values() if not look.named} == {GREY}


def test_grey_arms_can_be_given_a_look():
    every = looks(comparison_of(20))
    grey = [label for label, look in every.items() if not look.named]
    more = naming(every, [grey[0], grey[0], next(iter(every))])
    assert more[grey[0]].named
    assert more[grey[1]] == every[grey[1]]
    assert all(more[label] is look for label, look in every.items() if look.named)
    taken = [(look.colour, look.dash) for look in more.values() if look.named]
    assert len(taken) == len(set(taken)) == MOST_NAMED + 1


def test_arms_are_drawn_over_the_grey_ones_and_the_baseline_over_all():
    every = looks(comparison_of(20))
    order = ordered(list(every), every)
    assert sorted(order) == sorted(every)
    assert [every[label].named for label in order] == [False] * (20 - MOST_NAMED) + [True] * MOST_NAMED
    assert order[-1] == next(iter(every))


def test_a_tuned_arm_has_the_look_of_its_curve(tuned):
    every = looks(tuned)
    for arm in tuned.tuning.arms:
        (label,) = [label for label in every if label.startswith(f"{arm.label} at ")]
        assert look_of(arm.label, every) is every[label]
    assert look_of("no such arm", every).colour == "#000000"


def test_long_labels_keep_their_beginning_and_end():
    assert shortened("short") == "short"
    assert shortened("a" * 50) == "a" * 50
    text = shortened("".join(chr(ord("a") + i % 26) for i in range(200)), 11)
    assert (len(text), text[:5], text[-5:]) == (11, "abcde", "nopqr")
    assert "…" in text
