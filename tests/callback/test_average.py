"""Averages of weights: what they are, that training does not see them, and that they go on after a kill."""

import json
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.callback.average import ExponentialMovingAverage, LatestWeightAverage
from lmxexp.interfaces import ConfigError
from lmxexp.logger.jsonl import read_metrics
from tests.end_to_end.processes import deterministic, lmxexp, small
from tests.pythonpath import PYTHONPATH

ENV = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH}
BOTH = [
    "callback=[evaluate,sample,checkpoint,ema,lawa]",
    "callback.ema.decay=0.8",
    "callback.lawa.every=2",
    "callback.lawa.size=3",
]


class Settings:
    steps = 6


class FakeTrainer:
    """Weights that are the square of the step; its metrics are the weights it is evaluated with."""

    settings = Settings()

    def __init__(self):
        self.step = 0
        self.model = self
        self.own = {}

    def at(self, step):
        self.step, self.own = step, {"layer": {"weight": mx.array([float(step**2), 1.0]).astype(mx.bfloat16)}}
        return self

    def trainable_parameters(self):
        return self.own

    def update(self, parameters):
        self.own = parameters

    @contextmanager
    def weights(self, parameters):
        own, self.own = self.own, parameters
        yield
        self.own = own

    def metrics_of_weights(self):
        weight = self.own["layer"]["weight"]
        assert weight.dtype == mx.bfloat16
        return {"eval/loss": weight[0].item()}


def test_ema():
    callback, trainer = ExponentialMovingAverage(every=1, evaluate_every=2, decay=0.3), FakeTrainer()
    average = None
    for step in range(1, 7):
        decay = min(0.3, (1 + step) / (10 + step))
        average = step**2 if average is None else decay * average + (1 - decay) * step**2
        metrics = callback(trainer.at(step))
        np.testing.assert_allclose(callback.average()["layer.weight"][0].item(), average, rtol=1e-6)
        assert set(metrics) == ({"eval/ema/loss"} if step % 2 == 0 else set())
        if metrics:
            assert metrics["eval/ema/loss"] == pytest.approx(average, rel=2**-7)
        assert trainer.own["layer"]["weight"][0].item() == step**2
    assert callback.average()["layer.weight"].dtype == mx.float32


def test_lawa():
    callback, trainer = LatestWeightAverage(every=2, evaluate_every=4, size=2), FakeTrainer()
    found = {step: callback(trainer.at(step)) for step in range(1, 7)}
    assert found[4] == {"eval/lawa/loss": (4 + 16) / 2}
    assert found[6] == {"eval/lawa/loss": (16 + 36) / 2}, "at the end"
    assert not any(found[step] for step in (1, 2, 3, 5))


def test_a_step_is_taken_in_once():
    """A run that was stopped within the callbacks of a step calls them again when it goes on."""
    once, twice = (ExponentialMovingAverage(every=1, evaluate_every=0, decay=0.9) for _ in range(2))
    for step in (1, 2, 3):
        once(FakeTrainer().at(step))
        twice(FakeTrainer().at(step))
        again = ExponentialMovingAverage(every=1, evaluate_every=0, decay=0.9)
        again.restore(twice.state)
        again(FakeTrainer().at(step))
        twice = again
    assert mx.array_equal(once.average()["layer.weight"], twice.average()["layer.weight"]).item()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExponentialMovingAverage(0, 0, 0.9), "callback.ema.every=0 must be at least 1"),
        (
            lambda: ExponentialMovingAverage(4, 6, 0.9),
            "callback.ema.evaluate_every=6 must be a multiple of callback.ema.every",
        ),
        (lambda: ExponentialMovingAverage(1, 1, 1.0), r"callback.ema.decay=1.0 must lie in \[0, 1\)"),
        (lambda: LatestWeightAverage(1, 1, 0), "callback.lawa.size=0 must be at least 1"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_run_is_what_it_is_without_and_goes_on_to_the_bit(tmp_path):
    def run(*overrides):
        done = lmxexp(*small(tmp_path, "train.n_micro=1", *overrides), cwd=tmp_path, **ENV)
        assert done.returncode == 0, done.stdout + done.stderr

    plain, whole, stopped = (tmp_path / name for name in ("plain", "whole", "stopped"))
    run("callback=[evaluate,sample,checkpoint]", f"hydra.run.dir={plain}")
    run(*BOTH, f"hydra.run.dir={whole}")
    lines = [{k: v for k, v in line.items() if "ema" not in k and "lawa" not in k} for line in deterministic(whole)]
    assert lines == deterministic(plain)
    evaluated = [line for line in read_metrics(whole / "metrics.jsonl") if "eval/ema/loss" in line]
    assert [line["step"] for line in evaluated] == [4, 8, 12]
    assert all({"eval/ema/accuracy", "eval/lawa/loss"} <= set(line) for line in evaluated)
    assert all(line["eval/ema/loss"] != line["eval/loss"] for line in evaluated)
    assert "eval/ema/loss" in json.loads((whole / "summary.json").read_text())

    run(*BOTH, "train.steps=6", "schedule.steps=12", f"hydra.run.dir={stopped}")
    done = lmxexp(f"resume={stopped}", "train.steps=12", "schedule.steps=12", cwd=tmp_path, **ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in deterministic(stopped) if line["step"] > 6] == [
        line for line in deterministic(whole) if line["step"] > 6
    ]
