"""Members that share a ramp are trained together, and each is what it is alone."""

import json

import pytest

import lmxexp
from lmxexp.population.grouping import groups
from lmxexp.population.train import Member, together
from lmxexp.run import run_steps
from lmxexp.sweep.prepare import resolved
from tests.end_to_end.processes import deterministic, small
from tests.end_to_end.processes import lmxexp as command
from tests.population.close import assert_metrics_close, assert_run_as_alone, assert_sweep_as_alone, on_a_gpu
from tests.population.test_train import Nowhere
from tests.ramp.test_runs import RAMPS, SIZES


def grouped(*points):
    common = ["data=text", "data.path=x.txt", "train.steps=100"]
    return groups([resolved(lmxexp.compose([*common, *point])) for point in points])


@pytest.mark.parametrize(
    "other",
    [["ramp=none"], ["ramp=seq_len"], ["ramp=batch_size", "ramp.until=0.4"], ["ramp=batch_size", "ramp.start=4"]],
    ids=str,
)
def test_other_ramps_are_apart(other):
    assert grouped(["ramp=batch_size"], other, ["ramp=batch_size", "seed=2"]) == [[0, 2], [1]]


@pytest.mark.parametrize("n_micro", [1, 2])
@pytest.mark.parametrize("grows", RAMPS)
def test_each_is_what_it_is_alone(grows, n_micro, tmp_path):
    """Bit for bit on a CPU: weights, optimizer and random state, metrics, samples; one of them diverges on the way."""
    common = [*RAMPS[grows], f"train.n_micro={n_micro}", "model.n_layers=1", "optim=sgd", "schedule=constant"]
    own = [["seed=1"], ["seed=2", "optim.learning_rate=1e30", "train.max_grad_norm=null"], ["optim.learning_rate=1e-2"]]
    common.append("train.max_grad_norm=null")
    members = []
    for i, o in enumerate(own):
        member = Member(run_steps(lmxexp.compose(small(tmp_path, *common, *o)), tmp_path / str(i)), Nowhere())
        member.begin()
        members.append(member)
    assert together(members) is None
    assert [m.result.status for m in members] == ["ok", "diverged", "ok"]
    for i in (0, 2):
        alone = lmxexp.run(lmxexp.compose(small(tmp_path, *common, *own[i])), tmp_path / f"alone_{i}").run_dir
        assert json.loads((tmp_path / str(i) / "run.json").read_text())["population"] == 3
        if n_micro == 1:
            assert_run_as_alone(alone, tmp_path / str(i))
            continue
        # Parts are added up in another order of operations: as without a ramp.
        for a, b in zip(deterministic(alone), deterministic(tmp_path / str(i)), strict=True):
            if on_a_gpu():
                assert_metrics_close(b, a)
            else:
                assert b == pytest.approx(a, rel=1e-5)
    diverged_at = members[1].result.summary["step"]
    assert SIZES[grows][diverged_at - 1] < SIZES[grows][-1], "the shape of the others' batches changed after it"


def test_a_sweep_over_ramps(tmp_path):
    """From the command line: the seeds of each ramp go together, and come to what they come to one after the other."""
    points = ["ramp=none,seq_len", "seed=1,2", "train.n_micro=1", "train.steps=10", "callback=[evaluate,checkpoint]"]
    common = [o for o in small(tmp_path, "train.eval_every=5") if not o.startswith("callback")]
    for name, launcher in {"alone": [], "together": ["hydra/launcher=population", "hydra.launcher.force=true"]}.items():
        done = command("-m", *common, *points, *launcher, f"sweep={name}", cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    alone, together = (tmp_path / "outputs" / "sweeps" / name for name in ("alone", "together"))
    assert_sweep_as_alone(alone, together)
    records = [json.loads(path.read_text()) for path in together.glob("*_*/run.json")]
    assert [(r["population"], "ramp" in r) for r in sorted(records, key=lambda r: "ramp" in r)] == [
        *[(2, False)] * 2,
        *[(2, True)] * 2,
    ]
