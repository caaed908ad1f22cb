"""Evaluation over the whole split."""

import math

import mlx.core as mx
import numpy as np
import pytest

from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.train.evaluator import Evaluator
from tests.contracts.small_models import small_model
from tests.train.small_run import RandomTokens


def test_against_numpy():
    """Every target once, padding not at all; nats, perplexity, bits per byte and accuracy."""
    model, source = small_model("model.dropout=0.5"), RandomTokens()
    model.train()
    got = Evaluator(model, CrossEntropy(), source)()
    assert model.training, "training mode is put back"
    model.eval()
    nll, correct, n = 0.0, 0, 0
    for batch in source.eval_batches():
        logits = np.array(model(mx.array(batch.inputs)), dtype=np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for b, t in np.argwhere(batch.weights > 0):
            nll -= log_p[b, t, batch.targets[b, t]]
            correct += log_p[b, t].argmax() == batch.targets[b, t]
            n += 1
    assert n == 40
    assert got["eval/loss"] == pytest.approx(nll / n, rel=1e-6)
    assert got["eval/ppl"] == pytest.approx(math.exp(nll / n), rel=1e-5)
    assert got["eval/bpb"] == pytest.approx(nll / math.log(2) / source.eval_bytes, rel=1e-6)
    assert got["eval/accuracy"] == correct / n


def test_sees_new_weights_and_never_retraces():
    model = small_model()
    evaluator = Evaluator(model, CrossEntropy(), RandomTokens())
    first = evaluator()
    assert evaluator() == first
    model.norm.weight = model.norm.weight * 2.0
    assert evaluator()["eval/loss"] != first["eval/loss"]
    assert evaluator.sentinel.traces == {"evaluation": 1}


def test_mixed_precision_evaluates_in_the_compute_type():
    model = small_model()
    exact = Evaluator(model, CrossEntropy(), RandomTokens())()["eval/loss"]
    mixed = Evaluator(model, CrossEntropy(), RandomTokens(), compute_dtype=mx.bfloat16)()["eval/loss"]
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=1e-2)
    assert model.norm.weight.dtype == mx.float32


def test_can_be_stopped():
    assert Evaluator(small_model(), CrossEntropy(), RandomTokens())(should_stop=lambda: True) is None


def test_z_loss_is_no_part_of_the_evaluated_loss():
    model = small_model()
    plain = Evaluator(model, CrossEntropy(), RandomTokens())()
    assert Evaluator(model, CrossEntropy(z_loss=1.0), RandomTokens())() == plain
