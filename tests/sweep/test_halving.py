"""Successive halving against a plain reference; interrupted, grown, with arms that fail."""

import math
import random

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lmxexp.compose import install
from lmxexp.interfaces import ConfigError
from lmxexp.sweep.halving import HalvingSweeper, group_by_arm, rung_steps
from lmxexp.sweep.ledger import Outcome, read_outcome, write_outcome
from tests.sweep.arms import ends, grid, halving, planned


def reference(losses, steps, rungs, factor):
    """Of each arm and seed status, steps and score, by the book.

    Args:
        losses: ``(arm, seed, step)``, step 0 among them; infinite: it diverged.
    """
    n_arms, n_seeds, _ = losses.shape
    where = sorted({max(1, round(steps / factor**k)) for k in range(1, rungs + 1)} - {steps})
    alive = list(range(n_arms))
    end = {}
    for step in [*where, steps]:
        means = losses[:, :, step].mean(axis=1)
        for arm in alive:
            for seed in range(n_seeds):
                loss = losses[arm, seed, step]
                if np.isinf(loss):
                    end.setdefault((arm, seed), ("diverged", step, math.inf))
                elif (arm, seed) not in end:
                    end[arm, seed] = ("ok" if step == steps else "pruned", step, loss)
        if step == steps:
            break
        finite = np.where(np.isfinite(means), means, np.inf)[alive]
        order = [alive[i] for i in np.argsort(finite, kind="stable")]
        alive = sorted(arm for arm in order[: math.ceil(len(alive) / factor)] if np.isfinite(means[arm]))
        for arm in alive:
            for seed in range(n_seeds):
                if end[arm, seed][0] == "pruned":
                    del end[arm, seed]
    return [end[arm, seed] for arm in range(n_arms) for seed in range(n_seeds)]


def some_losses(rng, arms, seeds, steps, *, diverging=0.1, undefined=0.0):
    losses = rng.uniform(1, 5, (arms, seeds, steps + 1)).round(1)  # so that there are equals
    for arm in range(arms):
        for seed in range(seeds):
            if rng.random() < diverging:
                losses[arm, seed, rng.integers(1, steps + 1) :] = math.inf
            elif rng.random() < undefined:
                losses[arm, seed, rng.integers(1, steps)] = math.nan
    return losses


@pytest.mark.parametrize("seed", range(20))
def test_as_by_the_book(tmp_path, seed):
    rng = np.random.default_rng(seed)
    arms, seeds, steps = int(rng.integers(1, 12)), int(rng.integers(1, 4)), int(rng.integers(1, 40))
    rungs, factor = int(rng.integers(1, 4)), float(rng.choice([1.5, 2, 3, 4]))
    losses = some_losses(rng, arms, seeds, steps)
    points = planned(arms, seeds, (steps,))
    sweeper, training = halving(tmp_path, lambda *at: float(losses[at]), rungs=rungs, factor=factor)
    sweeper.run(points, tmp_path)
    want = reference(losses, steps, rungs, factor)
    assert ends(points, tmp_path) == want
    assert training.trained == sum(step for _, step, _ in want), "no step is trained twice"


def test_rungs():
    assert rung_steps([27], 2, 3) == [{27: 3}, {27: 9}]
    assert rung_steps([27], 3, 3) == [{27: 1}, {27: 3}, {27: 9}]
    assert rung_steps([100], 2, 2.5) == [{100: 16}, {100: 40}]
    assert rung_steps([12], 2, 2) == [{12: 3}, {12: 6}]
    assert rung_steps([3], 4, 3) == [{3: 1}], "rungs that coincide are one"
    assert rung_steps([1], 2, 3) == []
    assert rung_steps([27, 270, 27], 1, 3) == [{27: 9, 270: 90}]
    assert rung_steps([1, 9], 2, 3) == [{1: 1, 9: 1}, {1: 1, 9: 3}]


def test_arms_and_their_seeds(tmp_path):
    arms = group_by_arm(planned(3, 2))
    assert [[p.line for p in arm] for arm in arms] == [
        [[f"arm={arm}", f"seed={seed}"] for seed in range(2)] for arm in range(3)
    ]


def test_seeds_stay_and_stop_together_by_their_mean(tmp_path):
    """The arm whose seed is the best of all is not the best arm."""
    losses = {0: (1.0, 4.0), 1: (2.0, 2.0), 2: (3.0, 3.0)}
    points = planned(3, 2)
    sweeper, training = halving(tmp_path, lambda arm, seed, step: losses[arm][seed], rungs=1)
    sweeper.run(points, tmp_path)
    assert [status for status, _, _ in ends(points, tmp_path)] == ["pruned"] * 2 + ["ok"] * 2 + ["pruned"] * 2
    assert training.launched == [[(a, s, 9) for a in range(3) for s in range(2)], [(1, 0, None), (1, 1, None)]]


def test_what_it_stopped_is_reported(tmp_path):
    points = planned(4)
    sweeper, _ = halving(tmp_path, lambda arm, seed, step: [3.0, 1.0, 2.0, 4.0][arm], rungs=1, factor=2)
    sweeper.run(points, tmp_path)
    outcomes = [read_outcome(tmp_path / p.entry.dir) for p in points]
    assert [o and o.error for o in outcomes] == [
        "stopped at step 14: 3 of 4 arms, 2 go on", None, None, "stopped at step 14: 4 of 4 arms, 2 go on"
    ]  # fmt: skip
    assert [o and o.score for o in outcomes] == [3.0, 1.0, 2.0, 4.0], "what it came to until then"
    assert [o and o.exit_code for o in outcomes] == [0] * 4, "it is no failure"


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_arms_without_a_loss_come_last_and_never_go_on(tmp_path, bad):
    points = planned(6)
    sweeper, _ = halving(tmp_path, lambda arm, seed, step: bad if arm < 5 else 9.0, rungs=1, factor=2)
    sweeper.run(points, tmp_path)
    statuses = [status for status, _, _ in ends(points, tmp_path)]
    assert statuses == ["diverged" if math.isinf(bad) else "pruned"] * 5 + ["ok"]


def test_nan_among_the_scores_does_not_disturb_the_order(tmp_path):
    points = planned(9)
    scores = [5.0, math.nan, 3.0, math.nan, 1.0, math.nan, 2.0, math.nan, 4.0]
    sweeper, _ = halving(tmp_path, lambda arm, seed, step: scores[arm], rungs=1, factor=3)
    sweeper.run(points, tmp_path)
    assert [i for i, end in enumerate(ends(points, tmp_path)) if end[0] == "ok"] == [2, 4, 6]


def test_a_failed_point_stops_its_arm_and_may_try_again(tmp_path):
    loss = lambda arm, seed, step: arm + 1.0
    points = planned(4, 2)
    sweeper, training = halving(tmp_path, loss, rungs=1, factor=4, failing=frozenset([(0, 1)]))
    sweeper.run(points, tmp_path)
    assert training.launched[-1] == [(1, 0, None), (1, 1, None)]
    assert [status for status, _, _ in ends(points, tmp_path)] == ["pruned", "failed", "ok", "ok"] + ["pruned"] * 4
    # What was wrong is mended; the same command lets the arm, which is the best, go on.
    sweeper, _ = halving(tmp_path, loss, rungs=1, factor=4)
    sweeper.run(points, tmp_path)
    assert [status for status, _, _ in ends(points, tmp_path)] == ["ok"] * 4 + ["pruned"] * 4


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_point_it_comes_to_the_same_end(tmp_path, seed):
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    losses = some_losses(rng, 9, 2, 27)
    points = planned(9, 2)
    loss = lambda *at: float(losses[at])
    for _ in range(200):
        sweeper, training = halving(tmp_path, loss, stop_after=dice.randrange(4))
        try:
            sweeper.run(points, tmp_path)
        except KeyboardInterrupt:
            continue
        break
    else:
        pytest.fail("it does not get on")
    want = reference(losses, 27, 2, 3)
    assert ends(points, tmp_path) == want
    whole, _ = halving(tmp_path / "whole", loss)
    whole.run(points, tmp_path / "whole")
    for point in points:
        ours, theirs = (read_outcome(d / point.entry.dir) for d in (tmp_path, tmp_path / "whole"))
        assert ours is not None
        assert theirs is not None
        assert (ours.rungs, ours.error, ours.score) == (theirs.rungs, theirs.error, theirs.score)
    # Once more, and nothing runs or is written.
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    again, training = halving(tmp_path, loss)
    again.run(points, tmp_path)
    assert training.launched == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_more_arms_compete_with_those_that_were_there(tmp_path):
    """What was stopped among few may go on among many, and is told its place among all."""
    scores = [3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    loss = lambda arm, seed, step: scores[arm]
    few, many = planned(3), planned(9)
    sweeper, _ = halving(tmp_path, loss, rungs=1)
    sweeper.run(few, tmp_path)
    assert [status for status, _, _ in ends(few, tmp_path)] == ["pruned", "ok", "pruned"]
    sweeper, _ = halving(tmp_path, loss, rungs=1)
    sweeper.run(many, tmp_path)
    assert [status for status, _, _ in ends(many, tmp_path)] == ["ok"] * 3 + ["pruned"] * 6
    last = read_outcome(tmp_path / many[8].entry.dir)
    assert last is not None
    assert last.error == "stopped at step 9: 4 of 9 arms, 3 go on"
    # And what goes on among fewer than before stays finished.
    sweeper, _ = halving(tmp_path, loss, rungs=1)
    sweeper.run(few, tmp_path)
    assert [status for status, _, _ in ends(few, tmp_path)] == ["ok"] * 3


def test_what_another_sweep_has_finished_takes_nobodys_place(tmp_path):
    loss = lambda arm, seed, step: arm + 100.0 / step
    points = planned(7)
    sweeper, _ = grid(tmp_path, loss)
    sweeper.run(points[:1], tmp_path)
    sweeper, training = halving(tmp_path, loss, rungs=1)
    sweeper.run(points, tmp_path)
    assert [status for status, _, _ in ends(points, tmp_path)] == ["ok"] * 3 + ["pruned"] * 4
    assert training.launched == [[(arm, 0, 9) for arm in range(1, 7)], [(1, 0, None), (2, 0, None)]]


def test_what_another_sweep_has_begun_goes_on_from_there(tmp_path):
    """It is beyond the rung, and nobody knows what it came to there."""
    points = planned(5)
    outcome = Outcome("id4", "stopped", step=20)
    write_outcome(tmp_path / points[4].entry.dir, outcome)
    sweeper, training = halving(tmp_path, lambda arm, seed, step: arm + 1.0, rungs=1, factor=2)
    sweeper.run(points, tmp_path)
    assert ends(points, tmp_path) == [
        ("ok", 27, 1.0),
        ("ok", 27, 2.0),
        ("pruned", 14, 3.0),
        ("pruned", 14, 4.0),
        ("ok", 27, 5.0),
    ]
    assert training.trained == 27 + 27 + 14 + 14 + 7


def test_seeds_that_another_sweep_has_finished_take_the_others_along_unless_one_diverged(tmp_path):
    points = planned(3, 3)
    for arm in (0, 1):
        num = 3 * arm
        write_outcome(tmp_path / points[num].entry.dir, Outcome(f"id{num}", "ok", 1.0, step=27))
    losses = {(1, 1): math.inf}
    sweeper, _ = halving(tmp_path, lambda arm, seed, step: losses.get((arm, seed), 1.0), rungs=1)
    sweeper.run(points, tmp_path)
    statuses = [status for status, _, _ in ends(points, tmp_path)]
    assert statuses == ["ok"] * 3 + ["ok", "diverged", "pruned"] + ["ok"] * 3


def test_arms_of_different_length_pause_at_the_same_fraction(tmp_path):
    points = planned(4, 1, steps=(27, 270))
    sweeper, training = halving(tmp_path, lambda arm, seed, step: [2.0, 1.0, 3.0, 4.0][arm], rungs=2, factor=3)
    sweeper.run(points, tmp_path)
    assert training.launched == [
        [(0, 0, 3), (1, 0, 30), (2, 0, 3), (3, 0, 30)],
        [(0, 0, 9), (1, 0, 90)],
        [(1, 0, None)],
    ]
    assert ends(points, tmp_path) == [("pruned", 9, 2.0), ("ok", 270, 1.0), ("pruned", 3, 3.0), ("pruned", 30, 4.0)]


# Settings, and where arms come from


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"rungs": 0}, "rungs=0 must be at least 1"), ({"factor": 1}, "factor=1 must be above 1"),
     ({"factor": 0.5}, "factor=0.5 must be above 1"), ({"max_batch_size": 0}, "max_batch_size=0 must be at least 1")],
)  # fmt: skip
def test_settings_that_cannot_work(settings, text):
    with pytest.raises(ConfigError, match=text):
        HalvingSweeper(**settings)


def test_arms_are_drawn_and_every_one_gets_all_seeds():
    install()
    line = OverridesParser.create().parse_overrides(
        [
            "seed=1,2",
            "optim.learning_rate=tag(log,interval(1e-4,1e-1))",
            "attention=mha,gqa",
            "+data.seed=3",
            "seed=4,5",
        ]
    )
    lines = HalvingSweeper(n_trials=7, seed=3).lines(line)
    arms = {tuple(lines[i][:2]) for i in range(0, 14, 2)}
    assert len(lines) == 14
    assert len(arms) == 7
    assert [lines[i][2:] for i in (0, 1)] == [["seed=4", "+data.seed=3"], ["seed=5", "+data.seed=3"]]
    assert lines == HalvingSweeper(n_trials=7, seed=3).lines(line)
    discrete = OverridesParser.create().parse_overrides(["attention=mha,gqa", "seed=1,2"])
    assert len(HalvingSweeper().lines(discrete)) == 4
    with pytest.raises(ConfigError, match="an interval has no grid"):
        HalvingSweeper().lines(line)
