"""The recall task: its meaning by brute force, its distribution by counting."""

import numpy as np
import pytest

from lmxexp.data.mqar import Mqar, _distinct
from lmxexp.interfaces import ConfigError


def batches(source):
    return [source.batch(i) for i in range(5)] + list(source.eval_batches())


@pytest.mark.parametrize(
    ("seq_len", "n_pairs", "vocab_size"), [(64, 8, 8192), (32, 8, 16), (33, 5, 20), (4, 1, 2), (128, 4, 64)]
)
def test_each_query_asks_for_what_was_listed(seq_len, n_pairs, vocab_size):
    source = Mqar(seq_len, 6, vocab_size=vocab_size, n_pairs=n_pairs, n_eval=20)
    n_rows = 0
    for batch in batches(source):
        for inputs, targets, weights in zip(batch.inputs, batch.targets, batch.weights, strict=True):
            if not weights.any():  # a row that fills up the last batch
                continue
            n_rows += 1
            book = {}
            for i in range(n_pairs):
                key, value = int(inputs[2 * i]), int(inputs[2 * i + 1])
                assert 0 <= key < vocab_size // 2 <= value < vocab_size
                assert key not in book
                assert value not in book.values()
                book[key] = value
            queries = [t for t in range(seq_len) if weights[t]]
            assert all(weights[t] == 1 and t >= 2 * n_pairs and (t - 2 * n_pairs) % 2 == 0 for t in queries)
            assert sorted(int(inputs[t]) for t in queries) == sorted(book)
            for t in queries:
                assert targets[t] == book[int(inputs[t])]
            assert not targets[weights == 0].any()
    assert n_rows == 5 * 6 + 20


@pytest.mark.parametrize("power_a", [0.01, 0.5, 1.0])
def test_gaps_follow_the_power_law(power_a):
    source = Mqar(96, 2000, n_pairs=8, power_a=power_a)
    first, last = np.zeros(40), np.zeros(40)
    n = 0
    for index in range(10):
        batch = source.batch(index)
        for pair, counts in ((0, first), (7, last)):
            query = (batch.inputs == batch.inputs[:, [2 * pair]]) & (batch.weights == 1)
            assert (query.sum(1) == 1).all()
            counts += np.bincount((query.argmax(1) - 16) // 2, minlength=40)
        n += 2000
    p = np.arange(1, 41) ** (power_a - 1)
    p /= p.sum()
    # The first pair's place is drawn from the law itself: chi square with 39 degrees of freedom, mean 39.
    chi_square = ((first - n * p) ** 2 / (n * p)).sum()
    assert chi_square < 39 + 6 * np.sqrt(2 * 39)
    # The last pair's, from what seven others left: against drawing one after the other, naively.
    rng = np.random.default_rng(0)
    naive = np.zeros(40)
    for _ in range(4000):
        left = p.copy()
        for _ in range(7):
            left[rng.choice(40, p=left / left.sum())] = 0
        naive += left / left.sum()
    expected = naive / 4000
    chi_square = ((last - n * expected) ** 2 / (n * expected)).sum()
    assert chi_square < 2 * (39 + 6 * np.sqrt(2 * 39))  # twice: the expectation is an estimate too


def test_the_filler_is_random_over_the_vocabulary():
    source = Mqar(128, 500, vocab_size=64, n_pairs=2)
    batch = source.batch(0)
    filler = batch.inputs[:, 4:][batch.weights[:, 4:] == 0]
    counts = np.bincount(filler, minlength=64)
    assert np.abs(counts - len(filler) / 64).max() < 6 * np.sqrt(len(filler) / 64)


def test_different_numbers_are_drawn_uniformly():
    drawn = _distinct(np.random.default_rng(3), 60_000, 3, 4)
    assert all(len(set(row)) == 3 for row in drawn.tolist())
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 24
    chi_square = ((counts - 2500.0) ** 2 / 2500).sum()
    assert chi_square < 23 + 6 * np.sqrt(2 * 23)


def test_every_key_and_value_can_be_drawn():
    source = Mqar(32, 500, vocab_size=16, n_pairs=4)
    batch = source.batch(0)
    assert set(np.unique(batch.inputs[:, 0:8:2])) == set(range(8))
    assert set(np.unique(batch.inputs[:, 1:8:2])) == set(range(8, 16))


def test_no_tokenizer_is_called_and_the_record_says_so():
    def tokenizer(**_):
        raise AssertionError("there is no text")

    source = Mqar(32, 2, tokenizer=tokenizer)
    assert source.tokenizer is None
    assert source.eval_bytes is None
    assert source.record["tokenizer"].startswith("none")


@pytest.mark.parametrize("max_eval_tokens", [None, 1, 12, 13, 100])
def test_evaluation_counts_its_targets(max_eval_tokens):
    source = Mqar(32, 4, n_pairs=3, n_eval=10, max_eval_tokens=max_eval_tokens)
    n = min(max_eval_tokens or 30, 30)
    assert sum(b.weights.sum() for b in source.eval_batches()) == n
    assert len(list(source.eval_batches())) == -(-n // 12)


def test_fingerprint_names_the_task_not_the_seed():
    base = Mqar(32, 4).fingerprint
    assert Mqar(32, 8, seed=9).fingerprint == base
    for other in ({"n_pairs": 4}, {"power_a": 0.5}, {"vocab_size": 64}, {"n_eval": 3}, {"max_eval_tokens": 5}):
        assert Mqar(32, 4, **other).fingerprint != base


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"seq_len": 31},
            r"train\.seq_len=31 is too short for data\.n_pairs=8: .*train\.seq_len=32 or data\.n_pairs=7",
        ),
        ({"seq_len": 3, "n_pairs": 1}, r"train\.seq_len=3 is too short for data\.n_pairs=1: .*take train\.seq_len=4$"),
        ({"vocab_size": 33}, r"data\.vocab_size=33 must be even"),
        ({"vocab_size": 14}, r"data\.vocab_size=14 must be even and at least 16"),
        ({"n_pairs": 0}, r"data\.n_pairs=0 must be at least 1"),
        ({"n_eval": 0}, r"data\.n_eval=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit(settings, message):
    with pytest.raises(ConfigError, match=message):
        Mqar(**{"seq_len": 64, "batch_size": 2, **settings})
