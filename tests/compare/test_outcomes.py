import pytest

from lmxexp.compare.arms import Arm
from lmxexp.compare.outcomes import how_failed, why
from lmxexp.compare.read import find_runs
from tests.compare.made_runs import make_sweep, memory_run


@pytest.mark.parametrize(
    ("status", "error", "others", "text"),
    [
        ("diverged", "the loss of step 12\n is nan", {}, "diverged: the loss of step 12 is nan"),
        ("failed", None, {}, "failed"),
        ("killed", "signal 9", {}, "killed: signal 9"),
        ("pruned", "behind 2 of 3 arms", {}, "stopped early at step 200: behind 2 of 3 arms"),
        ("stopped", None, {}, "stopped at step 200; resume=made/_1 goes on"),
        ("stopped", None, {"sweep": "s"}, "stopped at step 200; the same sweep command goes on"),
        ("paused", None, {}, "paused at step 200"),
        ("running", None, {}, "running, or killed without a trace"),
        ("waiting", None, {}, "has not started"),
        ("{odd}", None, {}, "{odd}"),
    ],
)
def test_why_a_run_does_not_count(status, error, others, text):
    assert why(memory_run(status=status, error=error, **others)) == text


def test_the_step_of_a_point_without_a_summary(tmp_path):
    early = {"choices": {"attention": "mha"}, "status": "pruned", "early": True}
    sweep = make_sweep(tmp_path / "s", [early])
    (run,) = find_runs([sweep])
    assert why(run) == "stopped early at step ?"
    outcome = run.path / "outcome.json"
    outcome.write_text(outcome.read_text().replace('"attempt": 1', '"attempt": 1, "step": 30'))
    (run,) = find_runs([sweep])
    assert why(run) == "stopped early at step 30"


def test_how_an_arms_seeds_failed():
    good, statuses = [memory_run(seed=1)], ("diverged", "killed", "diverged", "failed", "pruned", "waiting", "running")
    lost = [memory_run(seed=i, status=s) for i, s in enumerate(statuses)]
    assert how_failed(Arm("a", good, lost)) == "2 of 8 diverged, 1 of 8 failed, 1 of 8 killed"
    assert how_failed(Arm("a", good, lost[4:])) == ""
