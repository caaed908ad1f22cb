"""Preparing in real processes: killed at any moment, several at once, larger than memory."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

# Small shards and batches, so that a small corpus has many, and one that takes its time.
PREPARE = """
import sys, time
from lmxexp.data import corpus, encode, shards
shards.SHARD_TOKENS, encode._BATCH_CHARS, corpus.PIECE, encode.PIECE = 8_000, 1_500, 500, 500
from lmxexp.compose import compose
from lmxexp.prepare import prepare
from lmxexp.tokenizer.byte import ByteTokenizer
encode_at_once = ByteTokenizer.encode
def slowly(self, text):
    time.sleep(float(sys.argv[1]))
    return encode_at_once(self, text)
ByteTokenizer.encode = slowly
print(prepare(compose(sys.argv[2:]))["fingerprint"])
"""


def corpus(directory: Path, n: int = 100) -> Path:
    file = directory / "corpus.jsonl"
    rng = random.Random(3)
    with open(file, "w") as out:
        for i in range(n):
            text = f"Document {i}. " + " ".join(
                rng.choice(["ship", "Straße", "\n", "don't", "42"]) for _ in range(rng.randrange(400))
            )
            out.write(json.dumps({"text": None if i % 17 == 5 else text}) + "\n")
    return file


def settings(file: Path, cache: Path, kind: str) -> list[str]:
    data = {
        "json": ["data=hf", "data.name=json", f"data.data_files={file}", "data.streaming=true", "data.val_documents=9"],
        "loaded": ["data=hf", "data.name=json", f"data.data_files={file}"],
        "parquet": [
            "data=hf",
            "data.name=parquet",
            f"data.data_files={file}",
            "data.streaming=true",
            "data.val_documents=9",
        ],
        "text": ["data=text", f"data.path={file}"],
    }[kind]
    return [*data, f"data.cache_dir={cache}"]


def start(slowness: float, overrides: list[str], directory: Path, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p), "HF_HOME": str(directory / "hf")}
    command = [sys.executable, "-c", PREPARE, str(slowness), *overrides]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finished(process: subprocess.Popen) -> tuple[str, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def contents(cache: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted((cache / "tokens").rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def finished_shards(cache: Path) -> dict[str, int]:
    """When each was written, in nanoseconds. Its name is a number; those of the files in ``sources`` are hashes."""
    return {str(path): path.stat().st_mtime_ns for path in (cache / "tokens").rglob("0*.json")}


def as_parquet(file: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), file.with_suffix(".parquet"), row_group_size=70)
    return file.with_suffix(".parquet")


@pytest.mark.parametrize(
    "kind",
    [pytest.param("json", marks=pytest.mark.exhaustive), pytest.param("parquet", marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(tmp_path, kind):
    file = corpus(tmp_path)
    if kind == "parquet":
        file = as_parquet(file)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected, _ = finished(start(0, settings(file, whole, kind), tmp_path))
    assert len([name for name in contents(whole) if name.endswith(".bin")]) > 8
    rng = random.Random(kind)
    kept: dict[str, int] = {}
    kills = 0
    while kills < 5 or len(kept) < 3:
        kills += 1
        process = start(0.005, settings(file, broken, kind), tmp_path)
        n_before = len(kept)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:  # until there is something to lose
            now = finished_shards(broken)
            if len(now) > n_before:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.1)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        now = finished_shards(broken)
        assert {name: now.get(name) for name in kept} == kept  # a finished shard is never made again
        kept = now
    assert finished(start(0, settings(file, broken, kind), tmp_path))[0] == expected
    assert contents(broken) == contents(whole)


def test_killed_once_and_two_at_once(tmp_path):
    """The second waits, and both take what the first began."""
    file = corpus(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = start(0.005, settings(file, broken, "text"), tmp_path)
    while not list(broken.rglob("00001.json")) and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    kept = finished_shards(broken)
    assert kept
    both = [start(0.005, settings(file, broken, "text"), tmp_path) for _ in range(2)]
    expected, _ = finished(start(0, settings(file, whole, "text"), tmp_path))
    outputs = [finished(process) for process in both]
    assert [fingerprint for fingerprint, _ in outputs] == [expected, expected]
    assert contents(broken) == contents(whole)
    assert {name: finished_shards(broken).get(name) for name in kept} == kept
    assert sum("waiting for another process" in err for _, err in outputs) == 1


MEMORY = """
import json, sys
from pathlib import Path
from lmxexp.compose import compose
from lmxexp.prepare import prepare

def resident():
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")).split()[1])

prepare(compose([*sys.argv[3:], f"data.data_files={sys.argv[1]}"]))
before = resident()
record = prepare(compose([*sys.argv[3:], f"data.data_files={sys.argv[2]}"]))
print(json.dumps([before * 1024, resident() * 1024, record["train_tokens"]]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("format", ["jsonl", pytest.param("parquet", marks=pytest.mark.exhaustive)])
def test_memory_does_not_grow_with_the_corpus(tmp_path, format):
    """A hundred times the text that is held at once, and a Parquet file of one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "all work and no play makes a dull corpus " * 100
    sizes = {"small": 2e7, "large": 1.5e8}
    for name, size in sizes.items():
        rows = [{"text": f"{i} {text}"} for i in range(int(size / len(text)))]
        if format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", use_dictionary=False)
        else:
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = ["data=hf", f"data.name={'json' if format == 'jsonl' else format}", "data.streaming=true"]
    overrides += ["data.val_documents=20", f"data.cache_dir={tmp_path / 'cache'}"]
    files = [str(tmp_path / f"{name}.{format}") for name in sizes]
    environment = {**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", MEMORY, *files, *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    before, after, tokens = json.loads(done.stdout)
    assert tokens > 1.4e8
    if not mx.cuda.is_available():  # whose libraries take as much by themselves
        assert after < 500e6
    assert after - before < 90e6, (before, after)


def test_a_full_disk_after_a_whole_shard_is_said_and_gone_on_from(tmp_path, monkeypatch):
    """Kept in memory, what is larger than it would end the process."""
    from lmxexp.data import encode, shards, token_file
    from lmxexp.interfaces import ConfigError
    from lmxexp.tokenizer.byte import ByteTokenizer

    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(encode, "_BATCH_CHARS", 100)
    documents = [f"document {i} " * 5 for i in range(200)]

    def tokens(cache):
        names = {"tokenizer_hash": "t", "source": "s", "split": "train"}
        return token_file.tokens_of(lambda: documents, ByteTokenizer(), cache_dir=cache, **names)

    written = 0
    fsync = os.fsync

    def until_full(descriptor):
        nonlocal written
        written += 1
        if written > 8:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as full:
        full.setattr("os.fsync", until_full)
        with pytest.raises(
            ConfigError, match=r"has no room for the tokens of the train split \(No space left.*goes on"
        ):
            tokens(tmp_path / "cache")
    assert len(finished_shards(tmp_path / "cache")) == 2
    made, info = tokens(tmp_path / "cache")
    expected, _ = tokens(tmp_path / "elsewhere")
    assert len(info.shards) > 5
    assert len(made.parts) == len(info.shards)
    assert np.array_equal(made.slice(0, len(made)), expected.slice(0, len(expected)))
    assert np.array_equal(made.starts, expected.starts)
    assert contents(tmp_path / "cache") == contents(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["00001.bin", "00001.json", "starts.bin"])
def test_a_damaged_shard_and_what_follows_are_made_again(tmp_path, monkeypatch, name):
    from lmxexp.data import encode, shards, token_file
    from lmxexp.tokenizer.byte import ByteTokenizer

    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    monkeypatch.setattr(encode, "_BATCH_CHARS", 100)
    documents = [f"document {i} " * 5 for i in range(100)]
    names = {"tokenizer_hash": "t", "source": "s", "split": "train"}
    token_file.tokens_of(lambda: documents, ByteTokenizer(), cache_dir=tmp_path, **names)
    expected = contents(tmp_path)
    (whole,) = tmp_path.rglob("tokens.json")
    whole.unlink()
    for left in (".00002.json.1234.abcd.tmp", "00002.unfinished"):
        (whole.parent / left).write_bytes(b"what a kill leaves")
    damaged = whole.with_name(name)
    data = bytearray(damaged.read_bytes())
    data[40] ^= 1
    damaged.write_bytes(data if name != "starts.bin" else data[:80])
    token_file.tokens_of(lambda: documents, ByteTokenizer(), cache_dir=tmp_path, **names)
    assert contents(tmp_path) == expected
