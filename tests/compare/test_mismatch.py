"""What an unequal budget could explain, from curves whose slope is known."""

import math

import numpy as np
import pytest

from lmxexp.compare.arms import group
from lmxexp.compare.mismatch import Mismatch, is_judged, is_loss, mismatch, slope
from lmxexp.compare.read import find_runs
from tests.compare.made_runs import END_SLOPE, make_run, make_sweep


def run_of(path, **arguments):
    (run,) = find_runs([make_run(path, **arguments)])
    return run


def fitted(run, metric, half=0.5):
    lines = [line for line in run.metrics() if metric in line]
    lines = lines[int(len(lines) * half) :]
    return np.polyfit([math.log(line["tokens"]) for line in lines], [line[metric] for line in lines], 1)[0]


def test_slope_of_the_last_half_of_the_evaluations(tmp_path):
    run = run_of(tmp_path / "a", eval_every=10)
    assert slope(run, "eval/loss") == pytest.approx(fitted(run, "eval/loss"), rel=1e-9)
    assert slope(run, "best/eval/loss") == slope(run, "eval/loss")
    assert slope(run, "eval/bpb") == pytest.approx(slope(run, "eval/loss") / math.log(2))
    assert slope(run, "eval/accuracy") > 0


def test_slope_is_that_of_the_curve(tmp_path):
    """The curve is -0.2 * (t / T)^-0.5 * -1 …: its slope against log t at the end is -0.1, and between T/2 and T less
    steep by no more than 1.41."""
    run = run_of(tmp_path / "a", eval_every=10)
    assert END_SLOPE * 1.42 < slope(run, "eval/loss") < END_SLOPE


def test_few_evaluations_leave_it_to_the_training_loss(tmp_path):
    run = run_of(tmp_path / "a", eval_every=50)  # four of them: two in the last half
    assert slope(run, "eval/loss") == pytest.approx(fitted(run, "train/loss"), rel=1e-9)
    assert slope(run, "eval/loss") != pytest.approx(fitted(run, "eval/loss"), rel=1e-3)
    assert slope(run, "eval/bpb") == pytest.approx(fitted(run, "train/loss") / math.log(2))
    assert slope(run, "eval/accuracy") is None


def test_long_runs_are_thinned(tmp_path):
    run = run_of(tmp_path / "a", steps=2000, log_every=1, eval_every=1000)
    assert slope(run, "eval/loss") == pytest.approx(fitted(run, "train/loss"), abs=0.005)


def test_nothing_logged_has_no_slope(tmp_path):
    run = run_of(tmp_path / "a", steps=20)
    assert slope(run, "eval/loss") is None
    (run.path / "metrics.jsonl").unlink()
    (again,) = find_runs([run.path])
    assert slope(again, "eval/loss") is None


def arms(tmp_path, *, of=({}, {}), slopes=(END_SLOPE, END_SLOPE), **arguments):
    points = [
        {"choices": {"attention": kind}, "seed": seed, "slope": s, "eval_every": 10, **record, **arguments}
        for kind, record, s in zip(("mha", "gqa"), of, slopes, strict=True)
        for seed in (1, 2)
    ]
    base, arm = group(find_runs([make_sweep(tmp_path / "s", points)]))
    return arm, base


def test_more_tokens(tmp_path):
    """10 % more at a slope of about -0.12: 0.011."""
    arm, base = arms(tmp_path, of=({}, {"summary": {"tokens": 409_600 * 1.1}}))
    found = mismatch(arm, base, "tokens", "eval/loss", higher=False)
    assert found.relative == pytest.approx(0.1)
    assert found.sensitivity == pytest.approx(-slope(arm.runs[0], "eval/loss"))
    assert found.explains == pytest.approx(math.log(1.1) * found.sensitivity)
    assert found.text == "+10 % tokens"
    for kind in ("flops", "time"):
        other = mismatch(arm, base, kind, "eval/loss", higher=False)
        assert (other.relative, other.sensitivity) == (pytest.approx(0.1), found.sensitivity)


def test_the_steeper_of_two_arms_counts(tmp_path):
    arm, base = arms(tmp_path, of=({}, {"summary": {"tokens": 1e6}}), slopes=(-0.3, -0.1))
    found = mismatch(arm, base, "tokens", "eval/loss", higher=False)
    assert found.sensitivity == pytest.approx(-slope(base.runs[0], "eval/loss"))
    assert mismatch(base, arm, "tokens", "eval/loss", higher=False).sensitivity == found.sensitivity


def test_a_metric_that_grows_worse_gains_nothing(tmp_path):
    arm, base = arms(tmp_path, of=({}, {"summary": {"tokens": 1e6}}), slopes=(0.3, 0.1))
    assert mismatch(arm, base, "tokens", "eval/loss", higher=False).explains == 0
    assert mismatch(arm, base, "tokens", "eval/accuracy", higher=True).explains == 0
    assert mismatch(arm, base, "tokens", "eval/accuracy", higher=False).explains > 0


def test_parameters_by_kaplan_or_by_the_curve_whatever_is_larger(tmp_path):
    more = ({"record": {"params": 1000}}, {"record": {"params": 1100}})
    arm, base = arms(tmp_path / "flat", of=more)
    found = mismatch(arm, base, "params", "eval/loss", higher=False)
    assert (found.relative, found.sensitivity) == (pytest.approx(0.1), pytest.approx(0.076 * 3.0))
    assert "Kaplan" in found.source
    arm, base = arms(tmp_path / "steep", of=more, slopes=(-0.5, -0.5))
    found = mismatch(arm, base, "params", "eval/loss", higher=False)
    assert found.sensitivity == pytest.approx(-slope(arm.runs[0], "eval/loss"))
    assert found.source == "measured on the curves"
    accuracy = mismatch(arm, base, "params", "eval/accuracy", higher=True)
    assert accuracy.sensitivity == pytest.approx(slope(arm.runs[0], "eval/accuracy"))


def test_what_the_user_gives_counts(tmp_path):
    arm, base = arms(tmp_path, of=({"peak_gb": 1.0}, {"peak_gb": 1.5}))
    found = mismatch(arm, base, "memory", "eval/loss", higher=False, sensitivity=0.2)
    assert (found.explains, found.source) == (pytest.approx(0.2 * math.log(1.5)), "given")
    assert mismatch(arm, base, "memory", "eval/loss", higher=False).explains is None


def test_an_unknown_sensitivity_lets_one_percent_pass():
    assert Mismatch("memory", 0.0099, None, "").explains == 0
    assert Mismatch("memory", -0.011, None, "").explains is None


def test_equal_budgets_read_no_curves(tmp_path):
    arm, base = arms(tmp_path)
    for run in (*arm.runs, *base.runs):
        (run.path / "metrics.jsonl").write_text("damaged\n")
    assert mismatch(arm, base, "tokens", "eval/loss", higher=False).explains == 0


def test_a_budget_that_is_not_known(tmp_path):
    arm, base = arms(tmp_path, of=({}, {"summary": {"tokens": None}}))
    assert mismatch(arm, base, "tokens", "eval/loss", higher=False) is None


def test_kinds_of_metrics():
    assert [is_loss(m) for m in ("eval/loss", "best/eval/loss", "train/loss", "eval/bpb", "eval/accuracy")] == [
        True
    ] * 4 + [False]
    assert [is_judged(m) for m in ("eval/loss", "perf/mfu", "mem/peak_gb", "speed/state_bytes/64")] == [
        *(True, False, False, False)
    ]
