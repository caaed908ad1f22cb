"""Best-fit packing against the naive algorithm, and what stands in the rows against the documents."""

import itertools
import time

import numpy as np
import pytest

from lmxexp.data import packing
from lmxexp.data.packing import best_fit, packed
from lmxexp.data.rows import Packed
from lmxexp.data.tokens import Tokens


def naive(sizes, capacity):
    """The room left in each row, by the algorithm as it is written down."""
    room = []
    for size in sorted(sizes, reverse=True):
        fits = [(r, i) for i, r in enumerate(room) if r >= size]
        i = min(fits)[1] if fits else len(room)
        if not fits:
            room.append(capacity)
        room[i] -= size
    return sorted(room)


def tokens_of(lengths, parts=1, seed=0):
    """Documents of these lengths, of tokens that all differ."""
    ids = np.random.default_rng(seed).permutation(sum(lengths)).astype(np.uint16)
    return Tokens(np.array_split(ids, parts), np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64))


@pytest.mark.parametrize("seed", range(60))
def test_best_fit_is_best_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    capacity, n = int(rng.integers(2, 40)), int(rng.integers(1, 120))
    sizes = rng.integers(1, capacity + 1, n) if seed % 2 else np.minimum(rng.geometric(0.3, n), capacity)
    row, n_rows = best_fit(sizes, capacity)
    used = np.bincount(row, weights=sizes, minlength=n_rows)
    assert sorted((capacity - used).tolist()) == naive(sizes.tolist(), capacity)
    assert np.array_equal(row, best_fit(sizes, capacity)[0])


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_each_token_is_a_target_once_but_a_documents_first(monkeypatch, block):
    monkeypatch.setattr(packing, "BLOCK", block)
    lengths = [1, 2, 8, 9, 10, 16, 17, 25, 3, 3, 5, 1, 40]
    tokens = tokens_of(lengths, parts=3)
    ids = tokens.slice(0, len(tokens)).tolist()
    plan = packed(tokens, 9)
    batch = Packed(tokens, plan, document_mask=True).batch(np.arange(plan.rows))
    assert plan.cut == sum(n > 9 for n in lengths)
    assert plan.efficiency == pytest.approx(plan.sizes.sum() / (plan.rows * 9))
    after = dict(itertools.pairwise(ids))
    firsts = {ids[s] for s in tokens.starts}
    targets = batch.targets[batch.weights == 1].tolist()
    assert sorted(targets) == sorted(set(ids) - firsts)
    for inputs, wanted, weights, segments in zip(*batch, strict=True):
        for i in np.flatnonzero(weights):
            assert after[inputs[i]] == wanted[i]
        # What is not cut lies whole in one segment.
        for start, n in zip(tokens.starts.tolist(), lengths, strict=True):
            if n <= 8 and ids[start] in inputs[weights > 0]:
                at = inputs.tolist().index(ids[start])
                assert inputs[at : at + n].tolist() == ids[start : start + n][: 8 - at]
                assert len(set(segments[at : at + n].tolist())) == 1
                assert (segments == segments[at]).sum() == min(n, 8 - at)


def test_without_the_mask_the_rows_are_the_same(monkeypatch):
    tokens = tokens_of([4, 6, 3, 20, 7])
    plan = packed(tokens, 9)
    masked, plain = (Packed(tokens, plan, mask).batch(np.arange(plan.rows)) for mask in (True, False))
    assert plain.segment_ids is None
    assert all(np.array_equal(a, b) for a, b in zip(masked[:3], plain[:3], strict=True))


def test_padding_is_a_segment_of_its_own():
    tokens = tokens_of([4, 9])
    plan = packed(tokens, 9)
    batch = Packed(tokens, plan, True).batch(np.arange(plan.rows))
    (row,) = np.flatnonzero(batch.segment_ids.max(axis=1) > batch.segment_ids.min(axis=1))
    assert batch.segment_ids[row].tolist() == [1] * 4 + [2] * 4
    assert batch.weights[row].tolist() == [1.0] * 3 + [0.0] * 5
    assert batch.inputs[row, 4:].tolist() == [0] * 4


def test_a_million_documents_take_seconds():
    lengths = np.maximum(1, np.random.default_rng(0).lognormal(6, 1.2, 1_000_000)).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    tokens = Tokens([np.broadcast_to(np.uint16(1), (int(lengths.sum()),))], starts)
    start = time.process_time()
    plan = packed(tokens, 2049)
    assert time.process_time() - start < 4  # 0.2 s of a processor
    assert plan.efficiency > 0.999
