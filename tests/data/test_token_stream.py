"""Windows over text, against naive loops."""

import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from lmxexp.data.corpus import Corpus, cut
from lmxexp.data.token_stream import TokenStream
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.bpe import BpeTokenizer
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer

TEXT = "".join(f"Zeile {i}: ß, \N{GRINNING FACE} und {i * 7919 % 1000}.\n" for i in range(200))


def small_bpe(**kwargs):
    return BpeTokenizer(**kwargs, vocab_size=400)


def training(source):
    return source._train.slice(0, len(source._train))


TOKENIZERS = [ByteTokenizer, CharTokenizer, small_bpe]


def stream(tmp_path, train, validation, tokenizer=ByteTokenizer, *, seq_len=8, batch_size=3, **settings):
    digest = hashlib.sha256(json.dumps([train, validation]).encode()).hexdigest()
    corpus = Corpus(train=lambda: train, validation=lambda: validation, fingerprint=digest, origin={})
    defaults = {"seed": 0, "max_eval_tokens": None, "cache_dir": str(tmp_path / "cache")}
    return TokenStream(corpus, tokenizer=tokenizer, seq_len=seq_len, batch_size=batch_size, **{**defaults, **settings})


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@pytest.mark.parametrize("max_eval_tokens", [None, 1, 8, 24, 25, 100])
def test_evaluation_covers_every_target_once_and_in_order(tmp_path, make_tokenizer, max_eval_tokens):
    source = stream(tmp_path, [TEXT], [TEXT[1:600]], make_tokenizer, max_eval_tokens=max_eval_tokens)
    tokens = source.tokenizer.encode(TEXT[1:600]).tolist()
    n_targets = min(max_eval_tokens or len(tokens), len(tokens) - 1)
    seen = []
    batches = list(source.eval_batches())
    for batch in batches:
        for row in range(3):
            for column in range(8):
                if batch.weights[row, column]:
                    seen.append((int(batch.inputs[row, column]), int(batch.targets[row, column])))
                else:
                    assert batch is batches[-1]
    assert seen == [(tokens[i], tokens[i + 1]) for i in range(n_targets)]
    assert len(batches) == -(-n_targets // 24)


@pytest.mark.parametrize("make_tokenizer", TOKENIZERS)
@pytest.mark.parametrize("documents", [[TEXT[:500]], [TEXT[:90], "", TEXT[90:91], TEXT[91:500]]])
def test_bytes_of_the_evaluation_targets(tmp_path, make_tokenizer, documents):
    source = stream(tmp_path, [TEXT], documents, make_tokenizer)
    n_joints = len([d for d in documents if d]) - 1
    total = len(TEXT[:500].encode()) + (n_joints if source.tokenizer.eos_id is None else 0)
    # The text begins with ASCII, so the first token's text is known without cutting characters in two.
    first = source.tokenizer.decode([int(next(source.eval_batches()).inputs[0, 0])])
    assert TEXT.startswith(first)
    assert source.eval_bytes == total - len(first.encode())


def test_windows_are_uniform_and_reach_both_ends(tmp_path):
    text = "".join(chr(48 + i) for i in range(20))
    source = stream(tmp_path, [text], [text], seq_len=8, batch_size=50)
    starts = []
    for index in range(400):
        batch = source.batch(index)
        assert np.array_equal(batch.inputs - batch.inputs[:, :1], np.tile(np.arange(8), (50, 1)))
        assert np.array_equal(batch.targets, batch.inputs + 1)
        starts += (batch.inputs[:, 0] - 48).tolist()
    counts = np.bincount(starts, minlength=12)
    # 20 tokens, windows of 9: 12 places, each 20000 / 12 = 1667 times, standard deviation 39.
    assert len(counts) == 12
    assert counts.min() > 1667 - 5 * 39
    assert counts.max() < 1667 + 5 * 39


def test_training_data_is_what_nanogpt_samples_from(tmp_path):
    """The same offsets give the same windows as stacking slices, as nanoGPT does."""
    source = stream(tmp_path, [TEXT], [TEXT], CharTokenizer)
    data = source.tokenizer.encode(TEXT)
    rng = np.random.Generator(np.random.Philox(key=[0, 5]))
    offsets = rng.integers(0, len(data) - 8, size=3)
    batch = source.batch(5)
    assert np.array_equal(batch.inputs, np.stack([data[i : i + 8] for i in offsets]))
    assert np.array_equal(batch.targets, np.stack([data[i + 1 : i + 9] for i in offsets]))


def test_documents_are_joined_by_end_of_text_or_newline(tmp_path):
    documents = ["one", "", "two two", "three"]
    bytes_only = stream(tmp_path, documents, documents)
    assert bytes_only.tokenizer.decode(training(bytes_only)) == "one\ntwo two\nthree"
    pieces = stream(tmp_path, documents, documents, small_bpe, seq_len=4)
    assert pieces.tokenizer.decode(training(pieces)) == "one<|endoftext|>two two<|endoftext|>three"
    assert list(training(pieces)).count(pieces.tokenizer.eos_id) == 2


def test_shortest_splits(tmp_path):
    assert len(list(stream(tmp_path, ["123456789"], ["123456789"]).eval_batches())) == 1
    with pytest.raises(ConfigError, match=r"train\.seq_len=8 needs at least 9 tokens .* the training split has 8"):
        stream(tmp_path, ["12345678"], ["123456789"])
    with pytest.raises(ConfigError, match=r"train\.seq_len=8 needs at least 9 tokens .* the validation split has 0"):
        stream(tmp_path, ["123456789"], [])


def test_large_vocabularies_take_four_bytes(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode(self, text):
            return super().encode(text).astype(np.uint32) + 65_500

        def decode(self, ids):
            return super().decode(np.asarray(ids) - 65_500)

    source = stream(tmp_path, [TEXT], [TEXT], lambda **_: Wide())
    assert training(source).dtype == np.uint32
    assert source.batch(0).inputs.max() > 65_535


def test_a_tokenizer_of_the_protocol_alone_will_do(tmp_path):
    class Minimal:
        vocab_size, eos_id = 256, None

        def encode(self, text):
            return np.frombuffer(text.encode("latin-1"), np.uint8)

        def decode(self, ids):
            return bytes(ids).decode("latin-1")

        def save(self, path):
            path.write_text("{}")

    source = stream(tmp_path, ["été" * 5], ["été" * 5], lambda **_: Minimal())
    assert source.eval_bytes == 25 - 2


def test_bits_per_byte_mean_nothing_where_text_is_lost(tmp_path):
    class Lower(ByteTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    assert stream(tmp_path, [TEXT], [TEXT], lambda **_: Lower()).eval_bytes is None


def test_fingerprint_names_the_tokens(tmp_path):
    base = stream(tmp_path, [TEXT], [TEXT]).fingerprint
    assert stream(tmp_path / "elsewhere", [TEXT], [TEXT], seq_len=4, batch_size=1, seed=5).fingerprint == base
    assert stream(tmp_path, [TEXT + "x"], [TEXT]).fingerprint != base
    assert stream(tmp_path, [TEXT], [TEXT + "x"]).fingerprint != base
    assert stream(tmp_path, [TEXT], [TEXT], CharTokenizer).fingerprint != base


def test_a_batch_is_ready_well_before_the_step(tmp_path):
    source = stream(tmp_path, [TEXT * 200], [TEXT], seq_len=1024, batch_size=8)
    times = []
    for index in range(50):
        start = time.perf_counter()
        source.batch(index)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 1e-3


@pytest.mark.parametrize("n_train", [0, 1, 3, 4, 5, 9, 10])
def test_cut_is_that_of_the_concatenation(n_train):
    documents = ["abc", "d", "", "efghij"]
    fraction = 1 - (n_train + 0.5) / 10
    before, after = cut(lambda: documents, lambda: 10, fraction)
    assert "".join(before()) == "abcdefghij"[:n_train]
    assert "".join(after()) == "abcdefghij"[n_train:]


ANOTHER_PROCESS = """
import hashlib, sys
from lmxexp.data.mqar import Mqar
from lmxexp.data.text import Text
from lmxexp.tokenizer.byte import ByteTokenizer
text = Text(ByteTokenizer, sys.argv[1], 8, 3, seed=4, cache_dir=sys.argv[2])
for source in (text, Mqar(32, 3, vocab_size=64, n_pairs=3, n_eval=5, seed=4)):
    batches = [source.batch(i) for i in (0, 9)] + list(source.eval_batches())
    print(hashlib.sha256(b"".join(a.tobytes() for b in batches for a in b if a is not None)).hexdigest())
"""


def test_another_process_gets_the_same_batches(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(TEXT.encode())
    outputs = {
        subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS, str(file), str(tmp_path / cache)],
            check=True,
            capture_output=True,
            text=True,
            env={"PATH": "", "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        ).stdout
        for cache, seed in (("one", "1"), ("one", "2"), ("two", "3"))
    }
    assert len(outputs) == 1
