"""The cache of tokens: used again, safe to share, safe to lose."""

import json
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest

from lmxexp.data import encode, token_file
from lmxexp.data.cache import write_atomically
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer

DOCUMENTS = ["Grüße", " an alle.\n"] * 50


class Counting:
    """Documents that know how often they were read."""

    def __init__(self, documents=DOCUMENTS):
        self.documents, self.reads = documents, 0

    def __call__(self):
        self.reads += 1
        return iter(self.documents)


def tokens(cache_dir, documents, tokenizer=None, **names):
    names = {"tokenizer_hash": "t", "source": "s", "split": "train", **names}
    made, info = token_file.tokens_of(documents, tokenizer or ByteTokenizer(), cache_dir=cache_dir, **names)
    assert len(made) == info.count
    assert len(made.starts) == info.documents
    return made.slice(0, len(made)), info


def files(cache_dir):
    """All there is but locks."""
    return sorted(p for p in (cache_dir / "tokens").rglob("*") if p.is_file() and p.name != ".lock")


def naive():
    return np.frombuffer("\n".join(DOCUMENTS).encode(), np.uint8)


def test_read_once_then_from_the_cache(tmp_path):
    documents = Counting()
    ids, info = tokens(tmp_path, documents)
    again, info_again = tokens(tmp_path, documents)
    assert documents.reads == 1
    assert np.array_equal(ids, naive())
    assert np.array_equal(again, naive())
    assert info == info_again
    assert (info.count, info.bytes, info.dtype) == (len(naive()), len(naive()), "uint16")
    made, _ = token_file.tokens_of(
        documents, ByteTokenizer(), tokenizer_hash="t", source="s", split="train", cache_dir=tmp_path
    )
    assert [type(part.base) for part in made.parts] == [np.memmap]
    assert type(made.starts.base) is np.memmap
    assert [p.name for p in files(tmp_path)] == ["00000.bin", "00000.json", "starts.bin", "tokens.json"]


@pytest.mark.parametrize("name", ["tokenizer_hash", "source", "split"])
def test_other_tokens_have_other_files(tmp_path, name):
    tokens(tmp_path, Counting())
    documents = Counting(["something else"])
    ids, _ = tokens(tmp_path, documents, **{name: "another"})
    assert documents.reads == 1
    assert bytes(ids.astype(np.uint8)) == b"something else"


def cut_short(file: Path):
    file.write_bytes(file.read_bytes()[:-2])  # a whole token


@pytest.mark.parametrize("name", ["00000.bin", "tokens.json", "starts.bin"])
@pytest.mark.parametrize("damage", [Path.unlink, cut_short, lambda file: file.write_bytes(b"")])
def test_a_damaged_cache_is_made_again(tmp_path, name, damage):
    tokens(tmp_path, Counting())
    (file,) = (tmp_path / "tokens").rglob(name)
    damage(file)
    for expected_reads in (1, 0):
        documents = Counting()
        ids, _ = tokens(tmp_path, documents)
        assert documents.reads == expected_reads
        assert np.array_equal(ids, naive())


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "cache"
    with pytest.warns(RuntimeWarning, match=r"data\.cache_dir=.* cannot be written .*LMXEXP_CACHE"):
        ids, info = tokens(cache, Counting())
    assert np.array_equal(ids, naive())
    assert info.count == len(naive())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens(cache, Counting(), split="validation")


def test_a_full_disk_costs_a_warning_and_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        ids, _ = tokens(tmp_path, Counting())
    assert np.array_equal(ids, naive())
    assert files(tmp_path) == []


def test_an_error_in_the_text_leaves_nothing(tmp_path):
    tokenizer = CharTokenizer(lambda: iter(["abc\n"]))
    with pytest.raises(ValueError, match="does not know the character 'G'"):
        tokens(tmp_path, Counting(), tokenizer)
    assert files(tmp_path) == []


def test_large_splits_are_encoded_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "_BATCH_CHARS", 20)
    ids, info = tokens(tmp_path, Counting())
    assert np.array_equal(ids, naive())
    assert info.count == len(naive())


@pytest.mark.parametrize(("text", "lossless"), [("plain", True), ("PLAIN", False)])
def test_lossless_is_looked_at(tmp_path, text, lossless):
    class Lower(ByteTokenizer):
        def encode(self, text):
            return super().encode(text.lower())

    _, info = tokens(tmp_path, Counting([text, "more"]), Lower(), check_lossless=True)
    assert info.lossless is lossless
    assert tokens(tmp_path, Counting(), split="other")[1].lossless is None


def write_often(directory, barrier, failures):
    documents = ["x" * 100_000] * 5
    barrier.wait()
    for i in range(10):
        ids, info = tokens(directory / str(i), Counting(documents))
        if len(ids) != 500_004 or info.count != 500_004 or set(np.unique(ids)) != {10, 120}:
            failures.put(i)


def test_two_writers_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")  # forking with Metal loaded is not safe
    barrier, failures = context.Barrier(2), context.Queue()
    processes = [context.Process(target=write_often, args=(tmp_path, barrier, failures)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert failures.empty()
    for i in range(10):
        binary, shard, starts, whole = files(tmp_path / str(i))
        for info in (shard, whole):
            assert binary.stat().st_size == 2 * json.loads(info.read_text())["count"]
        assert starts.stat().st_size == 8 * 5


def test_a_reader_never_sees_half_a_file(tmp_path):
    file = tmp_path / "file"
    write_atomically(file, lambda out: out.write(b"old"))
    with open(file, "rb") as reader:
        write_atomically(file, lambda out: out.write(b"new"))
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"

    def fails(out):
        out.write(b"ne")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        write_atomically(file, fails)
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]
