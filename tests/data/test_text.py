"""Local files: nanoGPT's split, patterns, and everything that can be wrong with a file."""

import bz2
import gzip
import lzma
import os

import pytest

from lmxexp.data.text import Text
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer

TEXT = "Der Fluß fließt.\r\nUnd weiter…\n" * 10


@pytest.fixture
def make(tmp_path):
    def made(path, tokenizer=ByteTokenizer, **settings):
        return Text(tokenizer, path, 4, 2, **{"cache_dir": str(tmp_path / "cache"), **settings})

    return made


def texts(source):
    return source.tokenizer.decode(source._train.slice(0, len(source._train))), source.tokenizer.decode(source._eval)


@pytest.mark.parametrize("val_fraction", [0.1, 0.25, 0.5, 0.9])
def test_the_last_characters_validate(make, tmp_path, val_fraction):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    n = int(len(TEXT) * (1 - val_fraction))
    assert texts(make(str(tmp_path / "a.txt"), val_fraction=val_fraction)) == (TEXT[:n], TEXT[n:])


def test_files_patterns_and_lists(make, tmp_path):
    for name, part in (("b", TEXT[:50]), ("a", TEXT[50:]), ("sub/c", "third" * 9)):
        (tmp_path / "books" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "books" / f"{name}.txt").write_bytes(part.encode())
    (tmp_path / "books" / "empty.txt").write_text("")
    books = str(tmp_path / "books")
    in_order = TEXT[50:] + TEXT[:50]
    assert "".join(texts(make(f"{books}/*.txt"))) == in_order
    assert "".join(texts(make(f"{books}/**/*.txt"))) == in_order + "third" * 9
    assert "".join(texts(make([f"{books}/b.txt", f"{books}/a.txt"]))) == TEXT
    source = make(f"{books}/*.txt", val_path=f"{books}/sub/*")
    assert texts(source) == (in_order, "third" * 9)
    assert source.record["files"] == [f"{books}/a.txt", f"{books}/b.txt"]


def test_a_changed_file_is_read_again(make, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("first version of the text " * 3)
    before = make(str(file))
    stat = file.stat()
    file.write_text("other version of the text " * 3)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = make(str(file))
    assert "".join(texts(after)) == "other version of the text " * 3
    assert before.fingerprint != after.fingerprint


def test_cached_tokens_need_no_text(make, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT)
    first = make(str(tmp_path / "a.txt"))

    def read(*_):
        raise AssertionError("the text was read again")

    monkeypatch.setattr("lmxexp.data.text_files.chunks", read)
    assert texts(make(str(tmp_path / "a.txt"))) == texts(first)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("missing.txt", None, r"does not exist: give the path of a text file"),
        ("*.nothing", None, r"matches no file with text in it"),
        ("folder", None, r"is a directory: give a file, or a pattern such as .*/\*\.txt"),
        ("empty.txt", b"", r"is empty"),
        ("binary.bin", b"abc\0def", r"is a binary file \(a NUL byte at 3\)"),
        ("latin.txt", "caf\xe9 au lait".encode("latin-1"), r"is not UTF-8 text \(at byte 3\)"),
    ],
)
@pytest.mark.parametrize("key", ["path", "val_path"])
def test_files_that_cannot_be_used(make, tmp_path, name, contents, message, key):
    (tmp_path / "good.txt").write_text(TEXT)
    (tmp_path / "folder").mkdir()
    if contents is not None:
        (tmp_path / name).write_bytes(contents)
    bad = str(tmp_path / name)
    settings = {"path": bad} if key == "path" else {"path": str(tmp_path / "good.txt"), "val_path": bad}
    with pytest.raises(ConfigError, match=message) as caught:
        make(**settings)
    assert str(caught.value).startswith(f"data.{key}={bad} ")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(make, tmp_path):
    (tmp_path / "secret.txt").write_text(TEXT)
    (tmp_path / "secret.txt").chmod(0)
    with pytest.raises(ConfigError, match=r"data\.path=.*cannot be read \(Permission denied\)"):
        make(str(tmp_path / "secret.txt"))


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5])
def test_fractions_that_leave_nothing(make, tmp_path, val_fraction):
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(ConfigError, match=rf"data\.val_fraction={val_fraction} must lie between 0 and 1"):
        make(str(tmp_path / "a.txt"), val_fraction=val_fraction)


def test_too_short_a_split(make, tmp_path):
    (tmp_path / "a.txt").write_text("0123456789" * 4)
    with pytest.raises(ConfigError, match=r"train\.seq_len=4 .* the validation split has 4: .*data\.val_fraction"):
        make(str(tmp_path / "a.txt"))


@pytest.mark.skipif("LMXEXP_TINYSHAKESPEARE" not in os.environ, reason="names the file of tiny Shakespeare")
def test_nanogpt_split_of_tiny_shakespeare(make):
    source = make(os.environ["LMXEXP_TINYSHAKESPEARE"], CharTokenizer)
    assert source.vocab_size == 65
    assert (source.record["train_tokens"], source.record["validation_tokens"]) == (1_003_854, 111_540)
    assert source.tokenizer.characters[:4] == "\n !$"
    assert source.tokenizer.decode(source._train.slice(0, 13)) == "First Citizen"
    assert source.eval_bytes == 111_539


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_compressed_files_are_the_text_in_them(make, tmp_path, suffix):
    if suffix == "zst":
        compress = pytest.importorskip("zstandard").ZstdCompressor().compress
    else:
        compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / f"a.txt.{suffix}").write_bytes(compress(TEXT.encode()))
    assert texts(make(str(tmp_path / f"a.txt.{suffix}"))) == texts(make(str(tmp_path / "a.txt")))


def test_a_compressed_file_that_is_cut_short(make, tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode())[:-12])
    with pytest.raises(ConfigError, match=r"data\.path=.*a\.txt\.gz cannot be read \(.*end"):
        make(str(tmp_path / "a.txt.gz"))
