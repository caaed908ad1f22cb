"""Document borders, packing and order in the batches of text, against loops over the documents."""

import time

import numpy as np
import pytest

from lmxexp.data.rows import Windows
from lmxexp.data.tokens import Tokens
from lmxexp.tokenizer.bpe import BpeTokenizer
from lmxexp.tokenizer.byte import ByteTokenizer
from tests.data.test_token_stream import stream

RNG = np.random.default_rng(5)
DOCUMENTS = ["".join(RNG.choice(list("abcdefgh"), n)) for n in RNG.integers(1, 30, 60)]
KINDS = [
    {"packing": packing, "order": order, "document_mask": mask}
    for packing in ("stream", "best_fit")
    for order in ("random", "shuffle")
    for mask in (False, True)
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))


def small_bpe(**kwargs):
    return BpeTokenizer(**kwargs, vocab_size=270)


def document_of_each_token(tokenizer, documents):
    """The joining token belongs to the document before it."""
    joint = 1
    lengths = [len(tokenizer.encode(d)) + joint for d in documents]
    return np.repeat(np.arange(len(documents)), lengths)[:-joint]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer, small_bpe])
def test_windows_keep_documents_apart(tmp_path, tokenizer):
    source = stream(tmp_path, DOCUMENTS, DOCUMENTS, tokenizer, seq_len=16, batch_size=9, document_mask=True)
    plain = stream(tmp_path, DOCUMENTS, DOCUMENTS, tokenizer, seq_len=16, batch_size=9)
    of = document_of_each_token(source.tokenizer, DOCUMENTS)
    assert np.array_equal(source._train.starts, np.searchsorted(of, np.arange(len(DOCUMENTS))))
    borders = 0
    for index in range(20):
        batch, same = source.batch(index), plain.batch(index)
        assert np.array_equal(batch.inputs, same.inputs)
        assert np.array_equal(batch.targets, same.targets)
        offsets = np.random.Generator(np.random.Philox(key=[0, index])).integers(0, len(of) - 16, size=9)
        for row, offset in enumerate(offsets):
            document = of[offset : offset + 17]
            for i in range(16):
                assert batch.weights[row, i] == (document[i + 1] == document[i])
                assert (batch.segment_ids[row] == batch.segment_ids[row, i]).tolist() == (
                    document[:-1] == document[i]
                ).tolist()
            borders += document[0] != document[-1]
    assert borders > 50
    assert (batch.weights.dtype, batch.segment_ids.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("max_eval_tokens", [None, 1, 7, 100, 101, 102, 10**6])
def test_evaluation_within_documents(tmp_path, max_eval_tokens):
    """Every token is a target once but a document's first, in order; and the bytes are those of the targets."""
    source = stream(tmp_path, DOCUMENTS, DOCUMENTS, seq_len=16, document_mask=True, max_eval_tokens=max_eval_tokens)
    ids = np.frombuffer("\n".join(DOCUMENTS).encode(), np.uint8)
    of = document_of_each_token(source.tokenizer, DOCUMENTS)
    want = [(ids[i], ids[i + 1]) for i in range(len(ids) - 1) if of[i] == of[i + 1]][:max_eval_tokens]
    seen, places = [], []
    for b, batch in enumerate(source.eval_batches()):
        counted = batch.weights.ravel() == 1
        seen += list(zip(batch.inputs.ravel()[counted], batch.targets.ravel()[counted], strict=True))
        places += [b * 48 + i for i in np.flatnonzero(counted)]
        for r, row in enumerate(batch.segment_ids):
            document = of[: places[-1] + 1][b * 48 + r * 16 : b * 48 + (r + 1) * 16]
            n = len(document)
            assert ((row[:n, None] == row[None, :n]) == (document[:, None] == document[None])).all()
    assert seen == want
    assert [(ids[i], ids[i + 1]) for i in places] == want
    assert source.record["eval_targets"] == source.eval_bytes == len(want)


def test_what_is_evaluated_is_in_the_fingerprint(tmp_path):
    make = lambda **settings: stream(tmp_path, DOCUMENTS, DOCUMENTS, **settings)
    plain, masked = make(), make(document_mask=True)
    assert masked.fingerprint != plain.fingerprint
    assert masked.record["document_mask"] is True
    for settings in ({"packing": "best_fit"}, {"order": "shuffle"}):
        assert make(**settings).fingerprint == plain.fingerprint, "the same text, in another order"


@every_kind
@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_global_batch(tmp_path, kind, world):
    source = stream(tmp_path, DOCUMENTS, DOCUMENTS, batch_size=8, **kind)
    for index in (0, 3, 123_456_789):
        whole = source.batch(index)
        joined = [source.batch(index, rank=r, world=world) for r in range(world)]
        for name, values in whole._asdict().items():
            if values is None:
                assert all(getattr(part, name) is None for part in joined)
            else:
                assert np.array_equal(np.concatenate([getattr(part, name) for part in joined]), values)


@every_kind
def test_a_batch_is_a_function_of_seed_and_index(tmp_path, kind):
    make = lambda seed: stream(tmp_path, DOCUMENTS, DOCUMENTS, batch_size=8, seed=seed, **kind)
    one, again, other = make(1), make(1), make(2)
    for index in (5, 0, 10**12):
        one.batch(3)
        assert np.array_equal(one.batch(index).inputs, again.batch(index).inputs)
        assert not np.array_equal(one.batch(index).inputs, other.batch(index).inputs)
        assert (one.batch(index).weights is not None) == one.weighted
    assert np.array_equal(
        np.concatenate([one.batch(index).inputs for index in (4, 5)])[3:11], one.rows(np.arange(35, 43)).inputs
    ), "rows are counted on over the batches"


@every_kind
def test_any_batch_costs_the_same(tmp_path, kind):
    source = stream(tmp_path, DOCUMENTS * 400, DOCUMENTS * 2, seq_len=1024, batch_size=32, **kind)
    times = {0: [], 10**12: []}
    for i in range(20):
        for first, taken in times.items():
            start = time.process_time()
            source.batch(first + i)
            taken.append(time.process_time() - start)
    # Of a processor: 0.1 ms by default, and 0.2 to 2 ms, of documents of 15 tokens, otherwise.
    assert np.median(times[0]) < 8e-3
    assert np.median(times[10**12]) < 8e-3


def test_each_window_comes_once_an_epoch():
    tokens = Tokens([np.arange(107, dtype=np.uint16)], np.zeros(1, np.int64))
    rows = Windows(tokens, 10, False)
    assert rows.per_epoch == 10
    begins = set()
    for epoch in range(40):
        batch = rows.batch(rows.nth(np.arange(10), np.full(10, epoch), seed=3))
        targets = np.sort(batch.targets.ravel())
        assert np.array_equal(targets, targets[0] + np.arange(100))
        begins.add(int(targets[0]))
    assert begins == set(range(1, 8)), "what is left over is left out now here, now there"


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_shuffled_epochs_hold_every_row_once(tmp_path, packing):
    source = stream(tmp_path, DOCUMENTS, DOCUMENTS, batch_size=8, packing=packing, order="shuffle")
    n = source.epoch.per_epoch
    batches = [source.batch(index) for index in range(-(-3 * n // 8))]
    rows = [row.tobytes() for batch in batches for row in np.concatenate([batch.inputs, batch.targets], axis=1)][
        : 3 * n
    ]
    epochs = [rows[i * n : (i + 1) * n] for i in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == n
    if packing == "best_fit":
        assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


def test_tokens_in_several_parts_are_taken_as_from_one():
    ids = np.arange(50, dtype=np.uint16)
    one, several = (Tokens(np.array_split(ids, k), np.array([0, 20])) for k in (1, 7))
    places = np.array([[0, 49, 7], [8, 8, 31]])
    assert np.array_equal(one.take(places), several.take(places))
    assert several.take(places).dtype == np.int32
