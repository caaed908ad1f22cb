"""A run that is paused and goes on is, bit for bit, one that was not."""

import json
import math
import signal
from importlib import import_module
from pathlib import Path

import pytest
from omegaconf import open_dict

from lmxexp import compose, run
from lmxexp.loaded import load
from lmxexp.logger.jsonl import read_metrics
from lmxexp.train import checkpoint
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.trainer import Trainer
from tests.end_to_end.processes import assert_same_run, deterministic, small

STEPS = 12  # evaluated and saved every 4, with dropout and two micro-batches


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(text):
    """An uninterrupted run."""
    directory = text / "whole"
    assert run(compose(small(text)), directory).status == "ok"
    return directory


def go(text, run_dir, until=None, **settings):
    """The run in a directory, or its beginning."""
    cfg = compose(small(text, *(f"{k}={v}" for k, v in settings.items())))
    if run_dir.exists():
        with open_dict(cfg):
            cfg.resume = str(run_dir)
    return run(cfg, run_dir, until=until)


def saved(run_dir: Path):
    newest = checkpoint.newest(run_dir / "checkpoints")
    assert newest is not None
    return checkpoint.read(newest)


@pytest.mark.parametrize("pauses", [[1], [4], [5], [11], [3, 4, 7, 8, 9]], ids=str)
def test_paused_and_continued_it_is_the_same_run(text, whole, tmp_path, pauses):
    run_dir = tmp_path / "run"
    for k in pauses:
        result = go(text, run_dir, until=k)
        assert (result.status, result.summary["step"], saved(run_dir).step) == ("paused", k, k)
        assert deterministic(run_dir) == [line for line in deterministic(whole) if line["step"] <= k]
    result = go(text, run_dir)
    assert result.status == "ok"
    assert_same_run(run_dir, whole)
    ours, theirs = (json.loads((d / "summary.json").read_text()) for d in (run_dir, whole))
    repeatable = lambda summary: {k: v for k, v in summary.items() if not k.startswith(("perf/", "mem/", "seconds"))}
    assert repeatable(ours) == repeatable(theirs)
    record = json.loads((run_dir / "run.json").read_text())
    assert record["status"] == "ok"
    assert [entry["step"] for entry in record["resumed"]] == pauses


def test_what_a_pause_says(text, whole, tmp_path):
    """Its score is the loss of the model as it is there, whether or not the run evaluates at that step."""
    run_dir = tmp_path / "run"
    at_4 = go(text, run_dir, until=4)
    logged = {line["step"]: line for line in read_metrics(whole / "metrics.jsonl")}
    assert at_4.score == logged[4]["eval/loss"]
    at_6 = go(text, run_dir, until=6)
    assert "eval/loss" not in logged[6]
    assert at_6.score == at_6.summary["eval/loss"] != at_4.score
    assert math.isfinite(at_6.score)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["status"], summary["error"], summary["step"]) == ("paused", None, 6)
    assert summary["eval/loss"] == at_6.score
    assert summary["eval/bpb"] > 0
    assert summary["best/step"] == 4, "an evaluation of the pause's own is no part of the run"
    assert json.loads((run_dir / "run.json").read_text())["status"] == "paused"
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "eval/loss" in line] == [4]
    assert load(run_dir).step == 6


def test_the_loss_at_a_pause_is_that_of_a_run_that_is_evaluated_there(text, tmp_path):
    often = go(text, tmp_path / "often", **{"train.eval_every": 1})
    assert often.status == "ok"
    logged = {line["step"]: line["eval/loss"] for line in read_metrics(tmp_path / "often" / "metrics.jsonl")}
    for k in (3, 6):
        assert go(text, tmp_path / "run", until=k).score == logged[k]


@pytest.mark.parametrize("until", [STEPS, STEPS + 5])
def test_a_pause_at_the_end_or_beyond_is_the_end(text, whole, tmp_path, until):
    result = go(text, tmp_path / "run", until=until)
    assert result.status == "ok"
    assert_same_run(tmp_path / "run", whole)


@pytest.fixture
def trained(monkeypatch):
    """Steps that were trained, whoever did."""
    steps, after = [], Trainer._after_step

    def after_step(self, *args):
        after(self, *args)
        steps.append(self.step)

    monkeypatch.setattr(Trainer, "_after_step", after_step)
    return steps


def test_paused_again_where_it_is_nothing_runs(text, tmp_path, trained, monkeypatch):
    first = go(text, tmp_path / "run", until=5)
    assert trained == [1, 2, 3, 4, 5]
    monkeypatch.setattr(import_module("lmxexp.run"), "build_source", lambda cfg: pytest.fail("it is known"))
    again = go(text, tmp_path / "run", until=5)
    assert (again.status, again.score, again.summary["step"]) == ("paused", first.score, 5)
    assert trained == [1, 2, 3, 4, 5]


def test_a_pause_that_is_behind_it_pauses_at_once(text, tmp_path, trained):
    go(text, tmp_path / "run", until=7)
    trained.clear()
    result = go(text, tmp_path / "run", until=3)
    assert (result.status, result.summary["step"], trained) == ("paused", 7, [])


def test_a_finished_run_does_not_pause(text, tmp_path, trained):
    assert go(text, tmp_path / "run").status == "ok"
    trained.clear()
    result = go(text, tmp_path / "run", until=3)
    assert (result.status, trained) == ("ok", [])


@pytest.mark.parametrize("when", ["during the last step", "during the evaluation"])
def test_stopped_at_the_pause_it_is_stopped_and_goes_on(text, whole, tmp_path, monkeypatch, when):
    """The signal that comes when the steps are done and the score is not."""
    run_dir, after, evaluate = tmp_path / "run", Trainer._after_step, Evaluator.__call__

    def after_step(self, *args):
        after(self, *args)
        if self.step == 5:
            signal.raise_signal(signal.SIGTERM)

    def evaluated(self, *args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self, *args, **kwargs)

    if when == "during the last step":
        monkeypatch.setattr(Trainer, "_after_step", after_step)
    else:
        assert go(text, run_dir, until=4).status == "paused"  # the next evaluation is the pause's own
        monkeypatch.setattr(Evaluator, "__call__", evaluated)
    result = go(text, run_dir, until=5)
    assert (result.status, result.signal, result.summary["step"]) == ("stopped", signal.SIGTERM, 5)
    assert math.isinf(result.score)
    monkeypatch.undo()
    assert go(text, run_dir, until=5).status == "paused"
    assert go(text, run_dir).status == "ok"
    assert_same_run(run_dir, whole)


def test_killed_after_a_pause_it_goes_on_from_there(text, whole, tmp_path, monkeypatch):
    run_dir, after = tmp_path / "run", Trainer._after_step

    def killed(self, *args):
        after(self, *args)
        if self.step == 7:
            raise KeyboardInterrupt  # as hard as a test can be to its own process: no checkpoint is written

    go(text, run_dir, until=5)
    monkeypatch.setattr(Trainer, "_after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        go(text, run_dir)
    monkeypatch.undo()
    assert saved(run_dir).step == 5
    assert go(text, run_dir).status == "ok"
    assert_same_run(run_dir, whole)


def test_diverged_before_the_pause_it_has_diverged(text, tmp_path):
    settings = {"optim.learning_rate": 1e30, "train.max_grad_norm": "null", "schedule": "constant"}
    result = go(text, tmp_path / "run", until=9, **settings)
    assert result.status == "diverged"
    assert math.isinf(result.score)
    assert result.summary["step"] < 9
