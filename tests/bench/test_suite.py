"""Cases as they are really measured, tiny ones."""

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.bench import peers, suite
from lmxexp.bench.own import OwnStep, RandomTokens
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.train.step import TrainStep
from tests.bench.small import small

AROUND = {"date": "2026-11-28", "command": "", "machine": {}, "packages": {}, "blas": {}, "say": lambda line: None}


def measured(cases, peer_names=()):
    return suite.run(cases, peer_names, n_rounds=2, n_steps=1, **AROUND)


def test_numbers_of_a_row_go_together():
    found = measured(small())
    (row,) = found.rows
    assert row.reason is None
    assert len(row.step_s.rounds) == 2
    assert row.tokens_per_s == pytest.approx(2 * 16 / row.step_s.median)
    peak = found.peaks["bf16" if row.precision != "fp32" else "fp32"]
    assert peak.gflops > 0
    model = build_model(small()[0].cfg, vocab_size=64)
    assert row.mfu == pytest.approx(model.flops_per_token(16) * row.tokens_per_s / (1e9 * peak.gflops))
    assert row.params == model.n_params()
    assert 0 < row.peak_gb < 1
    assert 0 <= row.compile_s <= row.to_first_step_s


def test_a_case_that_fails_is_a_row_and_the_others_are_measured():
    found = measured([*small("model.n_heads=3"), *small("attention=mla")])
    failed, good = found.rows
    assert "must be a multiple of" in failed.reason
    assert failed.step_s is None
    assert good.step_s is not None


def test_a_case_that_fails_in_a_round_is_a_row(monkeypatch):
    run = OwnStep.run

    def fails_later(self, n_steps):
        if self._trainer.step >= peers.N_AGREEING_STEPS:
            raise RuntimeError("[malloc] out of memory")
        return run(self, n_steps)

    monkeypatch.setattr(OwnStep, "run", fails_later)
    (row,) = measured(small()).rows
    assert row.reason == "RuntimeError: [malloc] out of memory"
    assert row.step_s is None


def test_a_peer_that_is_not_installed_is_a_remark(monkeypatch):
    monkeypatch.setitem(peers.PACKAGES, "lmxlab", "no_such_package_at_all")
    found = measured(small(), ["lmxlab"])
    assert found.remarks == ["lmxlab: not installed"]
    assert [row.contestant for row in found.rows] == ["lmxexp"]


def test_the_own_step_is_the_training_step():
    (case,) = small("train.n_micro=2", precision=["fp32"])
    own = OwnStep(case.cfg, case.vocab_size)
    source = RandomTokens(64, 2, 16)
    model, optimizer = build_model(case.cfg, vocab_size=64), optimizer_of(case.cfg)
    optimizer.init(model.trainable_parameters())
    step = TrainStep(model, optimizer, own._loss, n_micro=2, compile=False)
    expected = [step(source.batch(i))["train/loss"].item() for i in range(3)]
    assert own.run(3) == pytest.approx(expected, rel=1e-5)


def test_bf16_weights_come_back_from_the_loss_as_they_were():
    (case,) = small(precision=["bf16"])
    own = OwnStep(case.cfg, case.vocab_size)
    before = own.fp32_weights()
    own.loss(own.source.batch(0))
    assert own.model.norm.weight.dtype == mx.bfloat16
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), own.fp32_weights().values(), strict=True))


def test_random_tokens_are_skewed_and_come_again():
    source = RandomTokens(100, 8, 32, n_batches=2)
    first = source.batch(0)
    assert first.inputs.shape == first.targets.shape == (8, 32)
    assert np.array_equal(first.inputs[:, 1:], first.targets[:, :-1])
    assert np.array_equal(first.inputs, source.batch(2).inputs)
    assert not np.array_equal(first.inputs, source.batch(1).inputs)
    counts = np.bincount(first.inputs.ravel(), minlength=100)
    assert counts[:10].sum() > counts[50:].sum()
