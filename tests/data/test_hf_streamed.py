"""Data sets read on the way: the same tokens as loaded whole, from any row on, without what is not needed."""

import bz2
import gzip
import importlib.util
import json
import lzma
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from lmxexp.data import encode, shards, text_rows
from lmxexp.data.corpus import read_from
from lmxexp.data.hf_corpus import Selection
from lmxexp.data.hf_streamed import streamed_corpus
from lmxexp.data.text_rows import ColumnRows
from lmxexp.interfaces import ConfigError
from tests.data.kinds import DOCUMENTS

TEXTS = [None if i % 9 == 4 else "" if i % 9 == 5 else DOCUMENTS[i % 40] for i in range(100)]
VAL = 11


def zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def written(directory, name: str) -> str:
    """The rows in the format of the name, with columns that are not asked for."""
    file = directory / name
    table = pa.table({"id": list(range(len(TEXTS))), "text": TEXTS, "more": ["x" * 50] * len(TEXTS)})
    kind, _, packed = name.removeprefix("rows.").partition(".")
    if kind == "parquet":
        pq.write_table(table, file, row_group_size=17)
    elif kind == "arrow":
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=13)
    else:
        if kind == "csv":
            pa.csv.write_csv(table, file)
            data = file.read_bytes()
        else:
            data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        pack = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[packed]
        file.write_bytes(pack(data))
    return str(file)


FORMATS = {
    "rows.jsonl": "json",
    "rows.json.gz": "json",
    "rows.json.bz2": "json",
    "rows.json.xz": "json",
    **({"rows.json.zst": "json"} if importlib.util.find_spec("zstandard") else {}),
    "rows.csv.gz": "csv",
    "rows.parquet": "parquet",
    "rows.arrow": "arrow",
}


def all_of(source):
    return source.tokenizer.decode(source._train.slice(0, len(source._train))), source.tokenizer.decode(source._eval)


@pytest.mark.parametrize("name", FORMATS)
def test_streamed_and_loaded_are_the_same(make, tmp_path, monkeypatch, name):
    monkeypatch.setattr(text_rows, "ROWS", 7)
    settings = {"name": FORMATS[name], "data_files": written(tmp_path, name), "val_documents": VAL, "max_documents": 90}
    streamed, loaded = make("hf", **settings, streaming=True), make("hf", **settings)
    given = [[t for t in part if t] for part in (TEXTS[VAL:90], TEXTS[:VAL])]
    assert all_of(streamed) == tuple("\n".join(part) for part in given)
    assert all_of(loaded) == all_of(streamed)
    assert streamed.fingerprint == loaded.fingerprint
    assert np.array_equal(streamed._train.starts, loaded._train.starts)
    assert streamed.record["train_documents"] == len(given[0])
    assert streamed.record["val_documents"] == VAL


def test_a_validation_split_of_its_own_and_several_files(make, tmp_path):
    files = [written(tmp_path, name) for name in ("rows.jsonl", "rows.json.gz")]
    settings = {"data_files": {"train": files, "validation": files[0]}, "val_split": "validation"}
    streamed, loaded = make("hf", **settings, streaming=True), make("hf", **settings)
    assert all_of(streamed) == all_of(loaded)
    assert len(streamed._train.starts) == 2 * len([t for t in TEXTS if t])


def test_files_of_text_are_documents(make, tmp_path):
    for i, text in enumerate(["First\n\n  file\n" * 20, "second " * 30, "third\n" * 9]):
        (tmp_path / f"{i}.txt").write_text(text)
    settings = {"name": "text", "data_files": str(tmp_path / "*.txt"), "val_documents": 1}
    streamed, loaded = make("hf", **settings, streaming=True), make("hf", **settings)
    assert all_of(streamed) == ("second " * 30 + "\n" + "third\n" * 9, "First\n\n  file\n" * 20)
    assert all_of(loaded) == all_of(streamed)


def documents_of(kind: str, directory):
    if kind == "column":
        return ColumnRows(pa.chunked_array([TEXTS[:30], TEXTS[30:]]), VAL, 90)
    name = {"json": "rows.jsonl", "parquet": "rows.parquet", "gz": "rows.json.gz"}[kind]
    source = {"name": FORMATS[name], "config": None, "data_files": [written(directory, name)] * 2, "revision": None}
    return streamed_corpus(source, Selection("train", None, VAL, 0.1, 190, "text"), directory / "cache").train


@pytest.mark.parametrize("kind", ["column", "json", "gz", "parquet"])
def test_going_on_at_any_row(monkeypatch, tmp_path, request, kind):
    request.getfixturevalue("hf_cache")
    monkeypatch.setattr(text_rows, "ROWS", 7)
    documents = documents_of(kind, tmp_path)
    reader = read_from(documents, {"items": 0})
    places, texts = [reader.place()], []
    for text in reader:
        texts.append(text)
        places.append(json.loads(json.dumps(reader.place())))
    rows = [TEXTS[i % 100] for i in range(VAL, 90 if kind == "column" else 190)]
    assert texts == [text for text in rows if text]
    for i, place in enumerate(places):
        assert list(read_from(documents, place)) == texts[i:]


def test_parquet_goes_on_at_the_row_group(monkeypatch, tmp_path, request):
    """What is done is not even read."""
    request.getfixturevalue("hf_cache")
    documents = documents_of("parquet", tmp_path)
    reader = read_from(documents, {"items": 0})
    for _ in range(120):
        next(reader)
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, rows, groups, columns, **options):
        read.append((groups, columns))
        return iter_batches(self, rows, groups, columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    list(read_from(documents, reader.place()))
    assert read == [([3, 4, 5], ["text"])]  # of the second file


def test_only_as_many_rows_are_read_as_are_asked_for(make, tmp_path, monkeypatch):
    monkeypatch.setattr(text_rows, "ROWS", 5)
    file = written(tmp_path, "rows.parquet")
    read = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(self, *args, **options):
        for batch in iter_batches(self, *args, **options):
            read.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    make("hf", name="parquet", data_files=file, streaming=True, val_documents=5, max_documents=20, seq_len=8)
    assert sum(read) == 5 + 20  # for validation, and for training from the row group on in which it begins


def test_shards_change_no_batch(make, tmp_path, monkeypatch):
    settings = {"name": "parquet", "data_files": written(tmp_path, "rows.parquet"), "val_documents": VAL}
    one = make("hf", **settings, streaming=True)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 300)
    monkeypatch.setattr(encode, "_BATCH_CHARS", 50)
    many = make("hf", **settings, streaming=True, cache_dir=str(tmp_path / "elsewhere"))
    assert len(one._train.parts) == 1
    assert len(many._train.parts) > 9
    assert many.fingerprint == one.fingerprint
    for index in range(20):
        assert np.array_equal(many.batch(index).inputs, one.batch(index).inputs)
    for a, b in zip(one.eval_batches(), many.eval_batches(), strict=True):
        assert np.array_equal(a.targets, b.targets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"val_documents": None},
            r"data\.val_fraction=0\.1 cannot be cut off .*data\.val_documents=1000.*data\.val_split",
        ),
        ({"split": "train[:10%]"}, r"data\.split=train\[:10%\] is a slice, .*data\.max_documents"),
        ({"split": "trian"}, r"data\.split=trian is not a split of json: it has train"),
        ({"val_split": "train"}, r"data\.val_documents=11 would be ignored, for data\.val_split=train validates"),
        ({"val_documents": 0}, r"data\.val_documents=0 must be at least 1, or null"),
        ({"max_documents": 0}, r"data\.max_documents=0 must be at least 1, or null"),
        ({"max_documents": 11}, r"data\.val_documents=11 leaves none of data\.max_documents=11"),
        ({"text_column": "txt"}, r"data\.text_column=txt is not a column of json: it has .*; did you mean text\?"),
        ({"text_column": "id"}, r"data\.text_column=id of json holds int64, not text"),
        ({"data_files": "nowhere.json"}, r"data\.data_files=nowhere\.json cannot be found"),
    ],
)
def test_settings_that_cannot_work(make, tmp_path, settings, message):
    defaults = {"data_files": written(tmp_path, "rows.jsonl"), "val_documents": VAL, "streaming": True}
    with pytest.raises(ConfigError, match=message):
        make("hf", **{**defaults, **settings})


def test_zstd_says_what_is_missing(make, tmp_path):
    if importlib.util.find_spec("zstandard"):
        pytest.skip("zstandard is installed")
    (tmp_path / "rows.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd1234")
    with pytest.raises(ConfigError, match="pip install zstandard"):
        make("hf", data_files=str(tmp_path / "rows.jsonl.zst"), streaming=True, val_documents=1)
    with pytest.raises(ConfigError, match="pip install zstandard"):
        make("text", path=str(tmp_path / "rows.jsonl.zst"))


def test_a_connection_that_breaks_off_is_said_and_gone_on_from(make, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 500)
    monkeypatch.setattr(encode, "_BATCH_CHARS", 50)
    monkeypatch.setattr(text_rows, "ROWS", 7)
    iter_batches = pq.ParquetFile.iter_batches
    settings = {"name": "parquet", "data_files": written(tmp_path, "rows.parquet"), "val_documents": 3}

    def broken(self, *args, **options):
        for n, batch in enumerate(iter_batches(self, *args, **options)):
            if n == 8:
                raise OSError("connection reset")
            yield batch

    with monkeypatch.context() as breaks:
        breaks.setattr(pq.ParquetFile, "iter_batches", broken)
        message = r"data\.name=parquet .* could not be read beyond row 56 \(connection reset\): .*same command again"
        with pytest.raises(ConfigError, match=message):
            make("hf", **settings, streaming=True)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "tokens").rglob("0*.json")}
    assert len(kept) > 2
    assert all_of(make("hf", **settings, streaming=True))[0] == "\n".join(text for text in TEXTS[3:] if text)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


WITHOUT_NETWORK = """
import sys
import datasets
from lmxexp.data.hf import HuggingFace
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer

def source(**settings):
    return HuggingFace(ByteTokenizer, 8, 2, name="some/corpus", streaming=True, cache_dir=sys.argv[2], **settings)

here = datasets.load_dataset_builder("json", data_files=sys.argv[1])
there, datasets.load_dataset_builder = datasets.load_dataset_builder, lambda *args, **kwargs: here
first = source(val_documents=5)
datasets.load_dataset_builder = there
assert source(val_documents=5).fingerprint == first.fingerprint
try:
    source(val_documents=6)
except ConfigError as error:
    print(error)
"""


def test_tokens_that_are_there_need_no_network(tmp_path):
    file = written(tmp_path, "rows.jsonl")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, file, str(tmp_path / "cache")],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert done.stdout.startswith("data.name=some/corpus is not in the local cache and could not be downloaded")
    assert done.stdout.count("\n") == 1


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch, to do without")
def test_torch_is_not_imported(tmp_path):
    """Half a gigabyte for nothing."""
    file = written(tmp_path, "rows.jsonl")
    code = (
        "import sys; from lmxexp.data.hf import HuggingFace; from lmxexp.tokenizer.byte import ByteTokenizer; "
        "HuggingFace(ByteTokenizer, 8, 2, name='json', data_files=sys.argv[1], val_documents=5, streaming=True, "
        "cache_dir=sys.argv[2]); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code, file, str(tmp_path / "cache")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False"]
