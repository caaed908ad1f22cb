"""Where rankings flip, with curves whose crossings are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lmxexp.compare import flips as flips_module
from lmxexp.compare.curves import Band, lower_is_better, shown
from lmxexp.compare.flips import flips, leads

X = np.linspace(0, 100, 11)


def lines(start, end, spread=0.0, n=3, seeds=None):
    """Seeds around a straight line; ``spread`` is theirs alone where seeds are not shared."""
    shifts = spread * (np.arange(n) - (n - 1) / 2)
    return Band(X, np.linspace(start, end, len(X)) + shifts[:, None], list(seeds or range(n)))


def test_a_crossing_is_where_the_lines_cross():
    """3 -> 1 and 2.5 -> 1.75: equal at 1.25 t = 0.5, so at 40."""
    assert leads(lines(3, 1), lines(2.5, 1.75)) == [(False, 0.0), (True, pytest.approx(40))]
    assert leads(lines(2.5, 1.75), lines(3, 1)) == [(True, 0.0), (False, pytest.approx(40))]
    assert leads(lines(3, 1), lines(2.5, 1.75), sign=-1) == [(True, 0.0), (False, pytest.approx(40))]


def test_of_several_crossings_between_two_leads_the_last_counts():
    """The means cross at 35, back at 45 and again at 55, where the seeds disagree about all three."""
    means = np.array([1, 1, 1, 1, -1, 1, -1, -1, -1, -1, -1]) / 1.0
    spread = np.where((X >= 40) & (X <= 50), 5.0, 0.0)
    one = Band(X, means + spread * np.array([[-1], [0], [1]]), [0, 1, 2])
    assert leads(one, Band(X, np.zeros((3, len(X))), [0, 1, 2])) == [(False, 0.0), (True, pytest.approx(55))]


def test_no_flip_without_a_crossing():
    assert leads(lines(3, 1), lines(3.5, 1.5)) == [(True, 0.0)]
    assert leads(lines(3, 1), lines(3, 1)) == []


def test_a_lead_has_to_exceed_the_standard_error():
    """Unpaired, the seeds' spread hides a small lead; paired, it cancels."""
    one, other = lines(3, 1, spread=0.5), lines(2.9, 1.1, spread=0.5, seeds=range(10, 13))
    assert leads(one, other) == []
    assert len(leads(one, replace(other, seeds=one.seeds))) == 2


def test_a_single_point_is_no_lead():
    values = np.full((1, len(X)), 2.0)
    dented = values.copy()
    dented[0, 5] = 1.0
    assert leads(Band(X, dented, [1]), Band(X, values + 0.1, [1])) == [(True, 0.0)]
    above = values + 0.1
    above[0, 5] = 3.0
    assert leads(Band(X, above, [1]), Band(X, values, [1])) == [(False, 0.0)]


def test_where_the_grids_differ_both_have_to_reach():
    short = Band(X[:8], lines(3, 1).values[:, :8], [0, 1, 2])
    assert leads(short, lines(2.5, 1.75)) == [(False, 0.0), (True, pytest.approx(40))]
    assert leads(short, Band(X + 1000, lines(2.5, 1.75).values, [0, 1, 2])) == []


def test_a_steeper_arm_is_ahead_at_the_end(swept):
    """By the runs' formula, ``loss - 2 slope ((t / T)^-0.5 - 1)``, the means of mha and gqa cross where
    (t / T)^-0.5 - 1 is the difference of the last losses over twice that of the slopes."""
    mha, gqa = (np.mean(list(row.values.values())) for row in swept.rows[:2])
    crossing = 400 / (1 + (mha - gqa) / 0.2) ** 2
    (sentence,) = [s for s in flips(swept) if "mha" in s and "gqa" in s]
    start, _, rest = sentence.partition("step ")
    assert start == "attention=mha leads until "
    assert rest.endswith(", attention=gqa from there on")
    assert float(rest.partition(",")[0]) == pytest.approx(crossing, abs=5)


def fake(bands, baseline="a", higher=False):
    """A comparison whose arms have these bands."""
    arms = [SimpleNamespace(label=label, runs=[b]) for label, b in bands.items()]
    base = next(arm for arm in arms if arm.label == baseline)
    return SimpleNamespace(arms=arms, baseline=base, metric="eval/loss", higher_is_better=higher)


@pytest.fixture
def no_files(monkeypatch):
    monkeypatch.setattr(flips_module, "band", lambda arm, *_: arm.runs[0])
    monkeypatch.setattr(flips_module, "shown", lambda *_: shown([]))


@pytest.mark.usefixtures("no_files")
def test_sentences():
    falling, flat = lines(3, 1), lines(2.5, 1.75)
    assert flips(fake({"a": falling, "b": flat})) == ["b leads until step 40, a from there on"]
    assert flips(fake({"a": falling, "b": flat}, higher=True)) == ["a leads until step 40, b from there on"]
    one = [replace(b, values=b.values[:1], seeds=[0]) for b in (falling, flat)]
    assert flips(fake(dict(zip("ab", one, strict=True)))) == ["b leads until step 40, a from there on (one seed each)"]
    zigzag = Band(X, np.tile([0, 0, 2, 2, 0, 0, 2, 2, 0, 0, 2], (2, 1)).astype(float), [0, 1])
    level = Band(X, np.ones((2, len(X))), [0, 1])
    (many,) = flips(fake({"a": zigzag, "b": level}))
    assert many == "a and b change places 4 times, last at step 75: a leads then"
    two = Band(X, np.tile([0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0], (2, 1)).astype(float), [0, 1])
    assert flips(fake({"a": two, "b": level})) == ["a leads until step 25, b until step 65, a from there on"]


@pytest.mark.usefixtures("no_files")
def test_of_many_arms_those_with_the_baseline_and_the_best_are_told():
    bands = {"a": lines(3, 1)} | {f"b{i}": lines(2.5, 1.75 + i / 100) for i in range(7)}
    told = flips(fake(bands), at_most=5)
    assert told[-1] == "and 2 more pairs of arms change places"
    assert len(told) == 6
    assert all("a " in sentence for sentence in told[:-1])
    assert len(flips(fake(bands))) == 7


def test_the_direction_of_what_is_shown():
    accuracy = SimpleNamespace(metric="eval/accuracy", higher_is_better=True)
    assert not lower_is_better(accuracy, replace(shown([]), metric="eval/accuracy"))
    assert lower_is_better(accuracy, replace(shown([]), metric="train/loss"))  # shown in its place
    best = SimpleNamespace(metric="best/eval/own", higher_is_better=True)
    assert not lower_is_better(best, replace(shown([]), metric="eval/own"))
