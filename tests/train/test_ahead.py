"""A step is begun before the last one's scalars are read, and nothing that looks at a run can tell."""

import itertools
import signal
import statistics
import time

import mlx.core as mx
import pytest

from lmxexp import compose, device, run
from lmxexp.logger.jsonl import read_metrics
from lmxexp.train import checkpoint
from lmxexp.train.memory import OutOfMemoryError
from lmxexp.train.trainer import Trainer
from tests.end_to_end.processes import assert_same_run, small

STEPS = 12  # saved and evaluated every 4, sampled at the end; with dropout and two micro-batches


@pytest.fixture
def ahead(monkeypatch):
    """Whether the next step was under way, by the step that was done."""
    found = {}
    report = Trainer._report

    def noting(self, metrics):
        found[self.step] = self.ahead
        return report(self, metrics)

    monkeypatch.setattr(Trainer, "_report", noting)
    return found


def test_it_is_ahead_but_where_something_reads_the_state(tmp_path, ahead):
    assert run(compose(small(tmp_path)), tmp_path / "run").status == "ok"
    # Not after the first, whose shape is new, before checkpoints and evaluations, nor beyond the end.
    assert [step for step in range(1, STEPS + 1) if not ahead[step]] == [1, 4, 8, 12]


def test_where_something_reads_the_state_the_device_is_waited_for_and_told_of_what_failed(tmp_path, monkeypatch):
    """Metal's commands may fail after what was read of them, and leave a state that nobody computed."""
    waits = itertools.count(1)

    def wait():
        if next(waits) == 2:  # after the first step nothing reads the state, after the fourth a checkpoint does
            raise RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPU…)")

    monkeypatch.setattr(device, "wait", wait)
    with pytest.raises(OutOfMemoryError, match="Insufficient Memory"):
        run(compose(small(tmp_path)), tmp_path / "run")
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is None
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


def test_devices_meet_before_a_step_that_was_not_begun_ahead(tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(Trainer, "_meet", lambda self: met.append(self.step))
    run(compose(small(tmp_path)), tmp_path / "run")
    assert met == [0, 1, 4, 8]


def test_it_is_the_run_that_waits_for_each_step(tmp_path, monkeypatch):
    run(compose(small(tmp_path)), tmp_path / "ahead")
    monkeypatch.setattr(Trainer, "goes_on", lambda self: False)
    run(compose(small(tmp_path)), tmp_path / "waits")
    assert_same_run(tmp_path / "ahead", tmp_path / "waits")


def test_what_reads_the_state_finds_that_of_its_step(tmp_path, monkeypatch):
    """Every checkpoint is what training up to there leaves."""
    run(compose(small(tmp_path, "train.keep=9")), tmp_path / "whole")
    for path in (tmp_path / "whole" / "checkpoints").glob("step_*"):
        saved = checkpoint.read(path)
        short = run(compose(small(tmp_path, "schedule.steps=12", f"train.steps={saved.step}")), tmp_path / path.name)
        [newest] = [checkpoint.newest(short.run_dir / "checkpoints")]
        for name, a in checkpoint.read(newest).load("model").items():
            assert mx.array_equal(a, saved.load("model")[name]).item(), (path.name, name)


def test_a_signal_is_heeded_once_the_step_under_way_is_done(tmp_path, ahead, monkeypatch):
    run(compose(small(tmp_path)), tmp_path / "whole")
    report = Trainer._report

    def signalled(self, metrics):
        if self.step == 6 and self.run_dir.name == "stopped" and self.clock.steps > 3:
            assert self.ahead
            signal.raise_signal(signal.SIGTERM)
        return report(self, metrics)

    monkeypatch.setattr(Trainer, "_report", signalled)
    result = run(compose(small(tmp_path)), tmp_path / "stopped")
    assert (result.status, result.summary["step"]) == ("stopped", 7)
    cfg = compose(small(tmp_path))
    cfg.resume = str(tmp_path / "stopped")
    assert run(cfg, tmp_path / "stopped").status == "ok"
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_that_diverges_is_told_of_its_step(tmp_path):
    """The step that was under way when the loss was read does not count."""
    settings = ["optim=sgd", "optim.learning_rate=1e30", "train.max_grad_norm=null", "schedule=constant"]
    result = run(compose(small(tmp_path, *settings)), tmp_path / "run")
    assert result.status == "diverged"
    assert result.summary["step"] == len(read_metrics(tmp_path / "run" / "metrics.jsonl")) + 1


def test_a_batch_that_cannot_be_made_ends_the_run_with_the_reason(tmp_path, monkeypatch):
    batch = Trainer.batch

    def broken(self, step):
        if step == 5:
            raise OSError("the disk is gone")
        return batch(self, step)

    monkeypatch.setattr(Trainer, "batch", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        run(compose(small(tmp_path)), tmp_path / "run")
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def test_waiting_for_data_is_a_share_of_the_steps(tmp_path, monkeypatch):
    settings = ["callback=[throughput,sample]", "train.steps=8"]
    batch = Trainer.batch
    monkeypatch.setattr(Trainer, "batch", lambda self, step: time.sleep(0.2) or batch(self, step))
    run(compose(small(tmp_path, *settings)), tmp_path / "slow")
    monkeypatch.undo()
    run(compose(small(tmp_path, *settings)), tmp_path / "fast")
    slow, fast = (
        [line["perf/data_wait"] for line in read_metrics(tmp_path / name / "metrics.jsonl") if "perf/data_wait" in line]
        for name in ("slow", "fast")
    )
    assert len(slow) == len(fast) == 7  # not of the first, which compiles
    assert all(0 <= share <= 1 for share in [*slow, *fast])
    assert statistics.median(slow) > 0.5
    assert statistics.median(fast) < 0.3
