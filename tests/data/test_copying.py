"""String copying: its meaning by a naive loop, its lengths by counting."""

import numpy as np
import pytest

from lmxexp.data.copying import Copying
from lmxexp.interfaces import ConfigError


def batches(source):
    return [source.batch(i) for i in range(5)] + list(source.eval_batches())


def rows(source):
    for batch in batches(source):
        for row in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True):
            if any(row[2]):  # not a row that fills up the last batch
                yield row


SIZES = pytest.mark.parametrize(
    ("seq_len", "settings"),
    [
        (32, {}),
        (33, {"vocab_size": 5}),
        (2, {"vocab_size": 3}),
        (64, {"shortest": 7, "longest": 9}),
        (40, {"shortest": 20, "longest": 20}),
    ],
)


@SIZES
def test_the_second_string_is_the_first(seq_len, settings):
    source = Copying(seq_len, 6, n_eval=20, **settings)
    separator, n_rows = source.vocab_size - 1, 0
    for inputs, targets, weights in rows(source):
        n_rows += 1
        n = sum(w == 1 for w in weights)
        assert source.shortest <= n <= source.longest
        string = inputs[:n]
        assert all(0 <= token < separator for token in string)
        # The naive sequence of a string: itself, the separator, itself; then separators.
        whole = [*string, separator, *string]
        assert inputs == (whole[:-1] + [separator] * seq_len)[:seq_len]
        assert targets == [0] * n + string + [0] * (seq_len - 2 * n)
        assert weights == [0.0] * n + [1.0] * n + [0.0] * (seq_len - 2 * n)
    assert n_rows == 5 * 6 + 20


@SIZES
def test_the_inputs_alone_tell_the_answer(seq_len, settings):
    """Who writes down what comes before the separator and reads it out is never wrong."""
    source = Copying(seq_len, 6, n_eval=20, **settings)
    right = asked = 0
    for inputs, targets, weights in rows(source):
        written, at = [], None
        for t, token in enumerate(inputs):  # causal: one token at a time
            if at is None and token != source.vocab_size - 1:
                written.append(token)
                continue
            at = 0 if at is None else at + 1
            if weights[t]:
                asked += 1
                right += written[at] == targets[t]
    assert right == asked > 0


def test_lengths_and_tokens_are_uniform():
    source = Copying(16, 4000, vocab_size=11, shortest=3)
    batch = source.batch(0)
    lengths = batch.weights.sum(axis=1).astype(int)
    counts = np.bincount(lengths, minlength=9)
    assert counts[:3].sum() == 0
    assert ((counts[3:] - 4000 / 6) ** 2 / (4000 / 6)).sum() < 5 + 6 * np.sqrt(2 * 5)
    tokens = batch.targets[batch.weights == 1]
    expected = len(tokens) / 10
    counts = np.bincount(tokens, minlength=11)
    assert counts[10] == 0
    assert ((counts[:10] - expected) ** 2 / expected).sum() < 9 + 6 * np.sqrt(2 * 9)
    # The token that is shown says nothing about the target: they are drawn apart.
    shown = (batch.weights == 1) & (batch.inputs != 10)
    same = (batch.inputs == batch.targets)[shown]
    assert abs(same.mean() - 0.1) < 6 * np.sqrt(0.1 * 0.9 / len(same))


def test_no_tokenizer_is_called_and_the_record_says_so():
    def tokenizer(**_):
        raise AssertionError("there is no text")

    source = Copying(32, 2, tokenizer=tokenizer)
    assert source.tokenizer is None
    assert source.eval_bytes is None
    assert source.record["tokenizer"].startswith("none")
    assert (source.record["shortest"], source.record["longest"]) == (1, 16)


@pytest.mark.parametrize("max_eval_tokens", [None, 1, 7, 40, 10_000])
def test_evaluation_counts_its_targets(max_eval_tokens):
    whole = sum(b.weights.sum() for b in Copying(32, 4, n_eval=10).eval_batches())
    source = Copying(32, 4, n_eval=10, max_eval_tokens=max_eval_tokens)
    assert sum(b.weights.sum() for b in source.eval_batches()) == min(max_eval_tokens or whole, whole)


def test_fingerprint_names_the_task_not_the_seed():
    base = Copying(32, 4).fingerprint
    assert Copying(32, 8, seed=9).fingerprint == base
    assert Copying(32, 4, longest=16).fingerprint == base
    for other in ({"shortest": 2}, {"longest": 15}, {"vocab_size": 64}, {"n_eval": 3}, {"max_eval_tokens": 5}):
        assert Copying(32, 4, **other).fingerprint != base
    assert Copying(34, 4, longest=16).fingerprint != base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seq_len": 1}, r"train\.seq_len=1 has no room .* train\.seq_len=2"),
        ({"longest": 17}, r"data\.longest=17 .*train\.seq_len=32: take data\.longest=16 or train\.seq_len=34"),
        ({"longest": 0}, r"data\.longest=0 must be at least 1"),
        ({"shortest": 0}, r"data\.shortest=0 must be at least 1 and at most 16 .*half of train\.seq_len"),
        ({"shortest": 17}, r"data\.shortest=17 must be at least 1 and at most 16 .*half of train\.seq_len"),
        ({"shortest": 9, "longest": 8}, r"data\.shortest=9 must be at least 1 and at most 8 \(data\.longest"),
        ({"vocab_size": 2}, r"data\.vocab_size=2 must be at least 3"),
        ({"n_eval": 0}, r"data\.n_eval=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        Copying(**{"seq_len": 32, "batch_size": 2, **settings})
