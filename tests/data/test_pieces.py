"""Long documents in pieces: the tokens are those of the whole."""

import itertools
import random

import numpy as np
import pytest

from lmxexp.data import corpus, encode
from lmxexp.data.corpus import Continued, cut, pieces, read_from
from lmxexp.tokenizer.bpe import BpeTokenizer
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer
from lmxexp.tokenizer.subword import SubwordTokenizer
from lmxexp.tokenizer.texts import Texts

# What GPT-2's pattern tells apart, and what Python and it may call a space differently.
_WORDS = [
    "don't",
    "it's",
    "'s",
    "x",
    "1789",
    "...",
    "<|endoftext|>",
    "été",
    "привет",
    "日本語",
    "a\u0301",
    "\u200b",
    "\x1c",
]
_GAPS = ["", " ", "  ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\u00a0", "\u2003", "\x85", " \u3000"]


def random_text(rng: random.Random, n: int) -> str:
    return "".join(rng.choice(_WORDS) + rng.choice(_GAPS) for _ in range(n))


def whole_and_pieces(monkeypatch, size, text, chunk):
    monkeypatch.setattr(corpus, "PIECE", size)
    return list(pieces(text[i : i + chunk] for i in range(0, len(text), chunk)))


def bpe():
    texts = [random_text(random.Random(0), 3000), "the quick brown fox, it's 1789 don't\n\n  jump\n" * 50]
    return BpeTokenizer(lambda: iter(texts), vocab_size=700)


@pytest.mark.parametrize("make", [ByteTokenizer, lambda: CharTokenizer(lambda: iter(_WORDS + _GAPS)), bpe])
def test_pieces_have_the_tokens_of_the_whole(monkeypatch, make):
    tokenizer = make()
    assert tokenizer.encodes_pieces
    n_pieces = 0
    for seed in range(60):
        rng = random.Random(seed)
        text = random_text(rng, 200)
        made = whole_and_pieces(monkeypatch, rng.choice([1, 7, 50]), text, rng.choice([1, 13, 1000]))
        assert "".join(made) == text
        assert [isinstance(piece, Continued) for piece in made] == [False] + [True] * (len(made) - 1)
        n_pieces += len(made)
        assert np.array_equal(np.concatenate([tokenizer.encode(piece) for piece in made]), tokenizer.encode(text))
    assert n_pieces > 600  # the test is about something


def test_text_without_a_border_is_cut_all_the_same(monkeypatch):
    monkeypatch.setattr(corpus, "FARTHEST", 40)
    made = whole_and_pieces(monkeypatch, 10, "x" * 101, 7)
    assert "".join(made) == "x" * 101
    assert max(map(len, made)) == 40


def of_library(**changes):
    import json

    import tokenizers
    from tokenizers import models, pre_tokenizers

    made = tokenizers.Tokenizer(models.BPE({"a": 0, "<|endoftext|>": 1}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    state = json.loads(made.to_str())
    for path, value in changes.items():
        where = state
        *above, last = path.split("__")
        for key in above:
            where = where[key]
        where[last] = value
    return SubwordTokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)), None)


def added(**changes):
    plain = {"id": 1, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False}
    return [{**plain, "normalized": False, "special": True, **changes}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"added_tokens": added()}, True),
        ({"added_tokens": added(lstrip=True)}, False),
        ({"added_tokens": added(rstrip=True)}, False),
        ({"added_tokens": added(content="a b")}, False),
        ({"normalizer": {"type": "Lowercase"}}, False),
        ({"pre_tokenizer": None}, False),
        (
            {"pre_tokenizer": {"type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": True}},
            False,
        ),
        ({"pre_tokenizer__add_prefix_space": True}, False),
        ({"pre_tokenizer__use_regex": False}, False),
    ],
)
def test_which_tokenizers_take_pieces(changes, expected):
    assert of_library(**changes).encodes_pieces is expected


class Whole(ByteTokenizer):
    """Looks at the start of a text, as those do that put a space before it."""

    encodes_pieces = False

    def encode(self, text):
        return super().encode("^" + text)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), Whole()])
def test_documents_in_pieces_are_documents(monkeypatch, tokenizer):
    monkeypatch.setattr(encode, "_BATCH_CHARS", 5)
    texts = ["one", "", Continued(" goes on"), Continued(""), "two", "three", Continued(" and more")]
    made = list(
        encode.encode(
            read_from(lambda: texts, {"items": 0}), tokenizer, np.dtype(np.uint16), first=True, check_lossless=False
        )
    )
    mark = "^" if isinstance(tokenizer, Whole) else ""
    joint = tokenizer.encode("\n").tobytes().decode()
    documents = [mark + "one goes on", mark + "two", mark + "three and more"]
    assert b"".join(m.ids.astype(np.uint8).tobytes() for m in made).decode() == joint.join(documents)
    begins = itertools.accumulate([0, *(len(m.ids) for m in made)])
    starts = [int(s) + begin for m, begin in zip(made, begins, strict=False) for s in m.starts]
    expected = [0, len(documents[0]) + len(joint), len(documents[0]) + len(documents[1]) + 2 * len(joint)]
    assert starts == expected
    assert made[-1].place == {"items": 7}
    assert len(made) > 1


def test_a_long_document_of_a_data_set_is_encoded_in_pieces(monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 20)
    monkeypatch.setattr(encode, "PIECE", 20)
    monkeypatch.setattr(encode, "_BATCH_CHARS", 30)
    long = "some words and more of them " * 10
    made = list(
        encode.encode(
            read_from(lambda: ["a", long, "b"], {"items": 0}),
            ByteTokenizer(),
            np.dtype(np.uint16),
            first=True,
            check_lossless=True,
        )
    )
    assert b"".join(m.ids.astype(np.uint8).tobytes() for m in made).decode() == f"a\n{long}\nb"
    assert max(len(m.ids) for m in made) < 80
    assert [m.place for m in made if m.place] == [{"items": 3}]
    assert all(m.lossless for m in made)


def test_the_cut_goes_through_pieces(monkeypatch):
    text = random_text(random.Random(5), 100)
    made = whole_and_pieces(monkeypatch, 10, text, 50)
    for n_train in (1, 17, len(made[0]), len(made[0]) + 1, len(text) - 1):
        before, after = cut(lambda: made, lambda: len(text), 1 - (n_train + 0.5) / len(text))
        train, validation = list(before()), list(after())
        assert "".join(train) == text[:n_train]
        assert "".join(validation) == text[n_train:]
        assert [isinstance(piece, Continued) for piece in train] == [False] + [True] * (len(train) - 1)


def test_pieces_are_joined_by_nothing_in_a_vocabulary():
    one = Texts(lambda: ["ab", Continued("cd")], lambda: ["ef"])
    assert CharTokenizer(one).characters == "abcdef"
    two = Texts(lambda: ["ab", "cd"], lambda: ["ef"])
    assert CharTokenizer(two).characters == "\nabcdef"
