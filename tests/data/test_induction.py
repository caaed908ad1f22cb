"""Induction: its meaning by a naive loop."""

import numpy as np
import pytest

from lmxexp.data.induction import Induction
from lmxexp.interfaces import ConfigError


def rows(source):
    for batch in [source.batch(i) for i in range(5)] + list(source.eval_batches()):
        for row in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True):
            if any(row[2]):  # not a row that fills up the last batch
                yield row


SIZES = pytest.mark.parametrize(("seq_len", "vocab_size"), [(64, 32), (33, 32), (3, 2), (50, 3), (128, 100)])


@SIZES
def test_targets_are_what_followed_the_last_time(seq_len, vocab_size):
    source = Induction(seq_len, 6, vocab_size=vocab_size, n_eval=20)
    n_rows = 0
    for inputs, targets, weights in rows(source):
        n_rows += 1
        for t in range(seq_len):
            earlier = [p for p in range(t) if inputs[p] == inputs[t]]
            assert weights[t] == (1.0 if earlier else 0.0)
            assert targets[t] == (inputs[max(earlier) + 1] if earlier else 0)
    assert n_rows == 5 * 6 + 20


@SIZES
def test_the_inputs_alone_tell_the_answer(seq_len, vocab_size):
    """Who keeps one table, from a token to what followed it last, is never wrong."""
    source = Induction(seq_len, 6, vocab_size=vocab_size, n_eval=20)
    right = asked = 0
    for inputs, targets, weights in rows(source):
        followed, before = {}, None
        for token, target, weight in zip(inputs, targets, weights, strict=True):  # causal: one token at a time
            if before is not None:
                followed[before] = token
            if weight:
                asked += 1
                right += followed[token] == target
            before = token
    assert right == asked > 0


def test_every_sequence_asks():
    """With one token more than there are kinds, one of them comes twice."""
    for batch in [Induction(9, 500, vocab_size=8).batch(i) for i in range(4)]:
        assert batch.weights.any(axis=1).all()


def test_tokens_are_uniform_and_independent():
    batch = Induction(64, 2000, vocab_size=8).batch(0)
    pairs = np.bincount((8 * batch.inputs[:, :-1] + batch.inputs[:, 1:]).ravel(), minlength=64)
    expected = pairs.sum() / 64
    assert ((pairs - expected) ** 2 / expected).sum() < 63 + 6 * np.sqrt(2 * 63)


def test_the_last_occurrence_is_about_a_vocabulary_back():
    batch = Induction(400, 50, vocab_size=16).batch(0)
    gaps = []
    for row in batch.inputs.tolist():
        last = {}
        for t, token in enumerate(row):
            if t >= 200 and token in last:
                gaps.append(t - last[token])
            last[token] = t
    assert abs(np.mean(gaps) - 16) < 1


def test_no_tokenizer_is_called_and_the_record_says_so():
    def tokenizer(**_):
        raise AssertionError("there is no text")

    source = Induction(64, 2, tokenizer=tokenizer)
    assert source.tokenizer is None
    assert source.eval_bytes is None
    assert source.record["tokenizer"].startswith("none")


@pytest.mark.parametrize("max_eval_tokens", [None, 1, 7, 40, 10_000])
def test_evaluation_counts_its_targets(max_eval_tokens):
    whole = sum(b.weights.sum() for b in Induction(64, 4, n_eval=10).eval_batches())
    source = Induction(64, 4, n_eval=10, max_eval_tokens=max_eval_tokens)
    assert sum(b.weights.sum() for b in source.eval_batches()) == min(max_eval_tokens or whole, whole)


def test_fingerprint_names_the_task_not_the_seed():
    base = Induction(64, 4).fingerprint
    assert Induction(64, 8, seed=9).fingerprint == base
    for other in ({"vocab_size": 16}, {"n_eval": 3}, {"max_eval_tokens": 5}):
        assert Induction(64, 4, **other).fingerprint != base
    assert Induction(65, 4).fingerprint != base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 32}, r"data\.vocab_size=32 must be below train\.seq_len=32.*train\.seq_len=33.*vocab_size=31"),
        ({"vocab_size": 1}, r"data\.vocab_size=1 must be at least 2"),
        ({"seq_len": 2, "vocab_size": 2}, r"take train\.seq_len=3 or more$"),
        ({"n_eval": 0}, r"data\.n_eval=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        Induction(**{"seq_len": 64, "batch_size": 2, **settings})
