"""The default data: which files, which split, and once the real thing."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmxexp.data.python_stdlib import PythonStdlib, stdlib_corpus, stdlib_root
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from tests.data.kinds import write_library


def split(root, val_fraction=0.2):
    corpus = stdlib_corpus(root, val_fraction)
    return list(corpus.train()), list(corpus.validation()), corpus


def test_whole_files_are_held_out(tmp_path):
    train, validation, corpus = split(write_library(tmp_path))
    every = {p.read_text() for p in tmp_path.rglob("module*.py")}
    assert set(train) | set(validation) == every
    assert not set(train) & set(validation)
    share = sum(map(len, validation)) / sum(map(len, every))
    assert 0.15 < share <= 0.2
    assert corpus.origin["train_files"] + corpus.origin["validation_files"] == 30


def test_what_is_no_library_is_left_out(tmp_path):
    train, validation, _ = split(write_library(tmp_path))
    assert not any("LEFT_OUT" in text or "NOT_PYTHON" in text for text in train + validation)


def test_the_place_does_not_matter_but_the_contents_do(tmp_path):
    a, b = write_library(tmp_path / "a"), write_library(tmp_path / "b")
    assert split(a)[:2] == split(b)[:2]
    assert split(a)[2].fingerprint == split(b)[2].fingerprint
    (b / "module0.py").write_text("changed = 1\n")
    assert split(a)[2].fingerprint != split(b)[2].fingerprint
    assert split(a)[2].fingerprint != split(a, 0.4)[2].fingerprint


def test_declared_encodings(tmp_path):
    write_library(tmp_path)
    (tmp_path / "old.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'Zoë'\n".encode("latin-1"))
    train, validation, _ = split(tmp_path)
    assert any("Zoë" in text for text in train + validation)


def test_an_interpreter_without_sources(tmp_path):
    (tmp_path / "os.pyc").write_bytes(b"\0")
    with pytest.raises(ConfigError, match=r"data=python_stdlib finds no Python sources under .*data=text data\.path"):
        stdlib_corpus(tmp_path, 0.01)


def test_the_fraction_is_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.val_fraction=1\.0"):
        stdlib_corpus(tmp_path, 1.0)


def test_the_real_library(tmp_path):
    source = PythonStdlib(ByteTokenizer, 128, 16, cache_dir=str(tmp_path))
    assert 5e6 < source.record["train_bytes"] < 30e6
    assert 50e3 < source.record["validation_bytes"] <= 130e3
    assert source.eval_bytes == source.record["validation_tokens"] - 1
    text = source.tokenizer.decode(source._train.slice(0, len(source._train)))
    assert "class OrderedDict(" in text
    assert "idle_test" not in source.record["root"]
    inside = subprocess.run(
        [sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert stdlib_root() == Path(inside)
