"""The tokenizers that need no library."""

import time

import numpy as np
import pytest

from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer
from lmxexp.tokenizer.texts import Texts


def char(*texts):
    return CharTokenizer(lambda: iter(texts))


def test_bytes_are_bytes():
    assert ByteTokenizer().encode("é\n").tolist() == [0xC3, 0xA9, 10]


@pytest.mark.parametrize("ids", [[0xC3], [0xF0, 0x9F, 0x98], [0xFF], [97, 0x80, 98]])
def test_bytes_that_are_no_text(ids):
    assert "\ufffd" in ByteTokenizer().decode(ids)


def test_characters_are_sorted_and_distinct():
    tokenizer = char("hello", "world\n")
    assert tokenizer.characters == "\ndehlorw"
    assert tokenizer.vocab_size == 8
    assert tokenizer.encode("hold").tolist() == ["\ndehlorw".index(c) for c in "hold"]


def test_characters_of_the_validation_text_count():
    texts = Texts(lambda: ["ab"], lambda: ["bc"])
    assert list(texts()) == ["ab"]
    assert CharTokenizer(texts).characters == "abc"


def test_several_documents_bring_the_newline_that_joins_them():
    assert CharTokenizer(Texts(lambda: ["a", "b"], lambda: ["c"])).characters == "\nabc"
    assert CharTokenizer(Texts(lambda: ["a"], lambda: ["c", "b"])).characters == "\nabc"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("abcé", "'é' (U+00E9, at 3)"),
        ("A", "'A' (U+0041, at 0)"),
        ("a\N{GRINNING FACE}", "U+1F600"),
        ("\ud800", "U+D800"),
    ],
)
def test_unknown_characters_are_named(text, named):
    with pytest.raises(ConfigError) as caught:
        char("abc").encode(text)
    assert named in str(caught.value)
    assert "tokenizer=byte" in str(caught.value)


def test_no_text_no_vocabulary():
    with pytest.raises(ConfigError, match="tokenizer=char has no vocabulary"):
        char("")


def test_more_than_256_characters_take_two_bytes():
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    ids = char(text).encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == list(range(300))


@pytest.mark.parametrize(("make", "n_chars"), [(ByteTokenizer, 12_000_000), (lambda: char("abc é\n"), 1_000_000)])
def test_encoding_is_fast(make, n_chars):
    text = "abc é\n" * (n_chars // 6)
    tokenizer = make()
    start = time.perf_counter()
    tokenizer.encode(text)
    assert time.perf_counter() - start < 0.5
