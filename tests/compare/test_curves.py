"""Curves against what the lines of the files say, computed another way."""

import json
import math

import numpy as np
import pytest

from lmxexp.compare import curves
from lmxexp.compare.arms import Arm
from lmxexp.compare.curves import Band, Shown, band, curve, difference, shown, smooth
from lmxexp.compare.read import find_runs
from tests.compare.made_runs import make_run


def run_of(path, **arguments):
    (run,) = find_runs([make_run(path, **arguments)])
    return run


def rewrite(run, change):
    """The run again, with each of its lines changed."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(change(line))}\n" for line in lines))
    (again,) = find_runs([run.path])
    return again


def test_a_metric_against_four_axes(tmp_path):
    run = run_of(tmp_path / "a", record={"flops_per_token": 7.0}, eval_every=50)
    speeds = iter(np.linspace(100, 300, 20))
    run = rewrite(run, lambda line: line | {"perf/step_ms": next(speeds)})
    lines = run.metrics()
    evaluated = [line for line in lines if "eval/loss" in line]
    seconds, clock, before = {}, 0.0, 0
    for line in lines:
        clock, before = clock + (line["step"] - before) * line["perf/step_ms"] / 1e3, line["step"]
        seconds[line["step"]] = clock
    expected = {
        "step": [line["step"] for line in evaluated],
        "tokens": [line["tokens"] for line in evaluated],
        "flops": [7.0 * line["tokens"] for line in evaluated],
        "seconds": [seconds[line["step"]] for line in evaluated],
    }
    assert set(expected) == set(curves.AXES)
    for axis, at in expected.items():
        x, y = curve(run, "eval/loss", axis)
        np.testing.assert_allclose(x, at, rtol=1e-12)
        np.testing.assert_array_equal(y, [line["eval/loss"] for line in evaluated])


def test_time_between_readings_of_the_speed_is_shared_out(tmp_path):
    """Evaluated at step 15, speeds logged at 10 and 20: 10 steps of 100 ms, then 5 of 300 ms."""
    run = run_of(tmp_path / "a", steps=20)
    lines = [
        {"step": 10, "tokens": 10, "perf/step_ms": 100.0},
        {"step": 15, "tokens": 15, "eval/loss": 3.0},
        {"step": 20, "tokens": 20, "perf/step_ms": 300.0},
        {"step": 25, "tokens": 25, "eval/loss": 2.0},
    ]
    (run.path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run,) = find_runs([run.path])
    x, y = curve(run, "eval/loss", "seconds")
    np.testing.assert_allclose(x, [1.0 + 1.5])  # how long the steps after 20 took is not known
    assert y.tolist() == [3.0]


def test_time_by_tokens_where_no_step_time_was_logged(tmp_path):
    run = run_of(tmp_path / "a", tokens_per_s=1000.0)
    run = rewrite(run, lambda line: {k: v for k, v in line.items() if k != "perf/step_ms"})
    x, _ = curve(run, "eval/loss", "seconds")
    np.testing.assert_allclose(x, curve(run, "eval/loss", "tokens")[0] / 1000.0, rtol=1e-12)


@pytest.mark.parametrize("axis", ["flops", "seconds"])
def test_an_axis_that_was_not_logged(tmp_path, axis):
    run = run_of(tmp_path / "a", record={"flops_per_token": None})
    run = rewrite(run, lambda line: {k: v for k, v in line.items() if not k.startswith("perf/")})
    assert [len(v) for v in curve(run, "eval/loss", axis)] == [0, 0]
    assert len(curve(run, "eval/loss", "tokens")[0]) == 4


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    run = rewrite(run_of(tmp_path / "a"), lambda line: line | ({"eval/loss": "nan"} if line["step"] == 100 else {}))
    x, y = curve(run, "eval/loss")
    assert x.tolist() == [50, 150, 200]
    assert np.isfinite(y).all()


def test_long_curves_are_thinned_and_their_ends_stay(tmp_path):
    run = run_of(tmp_path / "a", steps=1000, log_every=1)
    x, y = curve(run, "train/loss")
    assert (len(x), x[0], x[-1]) == (curves.MAX_POINTS, 1, 1000)
    logged = {line["step"]: line["train/loss"] for line in run.metrics()}
    assert y.tolist() == [logged[step] for step in x]
    exact = 1000 * 2048 / 10_000.0
    assert curve(run, "train/loss", "seconds")[0][-1] == pytest.approx(exact)


def test_what_is_remembered_cannot_be_changed(tmp_path):
    run = run_of(tmp_path / "a")
    for values in curve(run, "eval/loss"):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


@pytest.mark.parametrize("window", [1, 3, 7, 99])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_smooth_is_the_mean_of_those_around(n, window):
    y = np.random.default_rng(n).normal(size=n)
    expected = []
    for i in range(n):
        half = min(window // 2, i, n - 1 - i)
        expected.append(np.mean(y[i - half : i + half + 1]))
    np.testing.assert_allclose(smooth(y, window), expected, rtol=1e-12)


def arm_of(path, *runs):
    made = [run_of(path / str(i), **{"seed": i, **arguments}) for i, arguments in enumerate(runs)]
    return Arm("arm", made)


def test_a_band_of_equal_grids(tmp_path):
    arm = arm_of(tmp_path, {"loss": 3.0}, {"loss": 3.2}, {"loss": 3.1})
    b = band(arm, "eval/loss")
    values = np.array([[line["eval/loss"] for line in run.metrics() if "eval/loss" in line] for run in arm.runs])
    assert (b.n, b.x.tolist()) == (3, [50, 100, 150, 200])
    np.testing.assert_allclose(b.mean, values.mean(0))
    np.testing.assert_allclose(b.low, values.min(0))
    np.testing.assert_allclose(b.high, values.max(0))


def test_a_band_is_where_all_seeds_have_data(tmp_path):
    """Seeds that took other times: from where the last starts to where the first ends, each interpolated."""
    arm = arm_of(
        tmp_path, {"tokens_per_s": 1000.0}, {"tokens_per_s": 1300.0}, {"tokens_per_s": 1100.0, "eval_every": 20}
    )
    b = band(arm, "eval/loss", "seconds")
    found = [curve(run, "eval/loss", "seconds") for run in arm.runs]
    assert b.x[0] == pytest.approx(max(x[0] for x, _ in found))
    assert b.x[-1] == pytest.approx(min(x[-1] for x, _ in found))
    assert (np.diff(b.x) > 0).all()
    for row, (x, y) in zip(b.values, found, strict=True):
        for at, value in zip(b.x, row, strict=True):
            right = max(1, min(int(np.searchsorted(x, at)), len(x) - 1))
            share = (at - x[right - 1]) / (x[right] - x[right - 1])
            assert value == pytest.approx(y[right - 1] + share * (y[right] - y[right - 1]))


def test_a_band_of_seeds_that_share_nothing_or_logged_nothing(tmp_path):
    early = arm_of(tmp_path / "a", {"steps": 50, "eval_every": 10}, {"steps": 500, "eval_every": 100})
    assert len(band(early, "eval/loss").x) == 0
    some = arm_of(tmp_path / "b", {}, {})
    run = rewrite(some.runs[1], lambda line: {k: v for k, v in line.items() if k != "eval/loss"})
    assert band(Arm("arm", [some.runs[0], run]), "eval/loss").n == 1
    assert (band(Arm("arm", [run]), "eval/loss").n, len(band(Arm("arm", []), "eval/loss").x)) == (0, 0)


def test_runs_of_one_seed_are_one_curve(tmp_path):
    """At two learning rates, which the arm does not name: their mean."""
    arm = arm_of(tmp_path, {"seed": 1, "loss": 3.0}, {"seed": 1, "loss": 4.0}, {"seed": 2, "loss": 3.6})
    b = band(arm, "eval/loss")
    assert (b.n, len(b.seeds)) == (2, 2)
    ends = [3.5, 3.6]
    np.testing.assert_allclose(b.values[:, -1], ends)
    assert b.mean[-1] == pytest.approx(np.mean(ends))


def test_a_band_is_smoothed_before_it_is_averaged(tmp_path):
    arm = arm_of(tmp_path, {}, {})
    b = band(arm, "train/loss", window=5)
    expected = [smooth(curve(run, "train/loss")[1], 5) for run in arm.runs]
    np.testing.assert_allclose(b.values, expected)


def test_the_difference_of_two_bands_goes_by_seed():
    x = np.array([1.0, 2.0, 3.0])
    one = Band(x, np.array([[3.0, 2.0, 1.0], [4.0, 3.0, 2.0], [9.0, 9.0, 9.0]]), ["s1", "s2", "s9"])
    other = Band(x, np.array([[3.5, 3.5, 3.5], [1.0, 1.0, 1.0]]), ["s2", "s1"])
    d = difference(one, other)
    assert d.seeds == ["s1", "s2"]
    np.testing.assert_allclose(d.values, [[2.0, 1.0, 0.0], [0.5, -0.5, -1.5]])
    alone = difference(one, Band(x, np.array([[1.0, 1.0, 1.0]]), ["s1"]))  # one shared seed is no pair
    np.testing.assert_allclose(alone.values, [[13 / 3, 11 / 3, 3.0]])
    assert alone.n == 1
    apart = difference(one, Band(x + 10, np.ones((1, 3)), ["s1"]))
    assert len(apart.x) == 0


@pytest.mark.parametrize(
    ("metric", "arguments", "expected", "title"),
    [
        ("eval/loss", {}, Shown("eval/loss"), "eval/loss"),
        ("best/eval/loss", {}, Shown("eval/loss"), "eval/loss"),
        ("train/grad_norm", {}, Shown("train/grad_norm"), "train/grad_norm"),
        (
            "eval/loss", {"eval_every": 100}, Shown("train/loss", 1, "eval/loss"),
            "train/loss (too few eval/loss for curves)",
        ),
        (
            "eval/loss", {"eval_every": 500, "log_every": 2, "steps": 200}, Shown("train/loss", 5, "eval/loss"),
            "train/loss, mean of 5 logged values (too few eval/loss for curves)",
        ),
    ],
)  # fmt: skip
def test_what_is_shown(tmp_path, metric, arguments, expected, title):
    arm = arm_of(tmp_path, arguments, arguments)
    found = shown([arm], metric)
    assert (found, found.title) == (expected, title)


def test_one_run_with_few_evaluations_decides_for_all(tmp_path):
    assert shown([arm_of(tmp_path, {}, {"eval_every": 100})]).metric == "train/loss"
    assert shown([Arm("nothing", [])]).metric == "eval/loss"
    assert math.isfinite(len(shown([]).title))
