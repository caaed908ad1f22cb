"""Text in two splits, before any tokenizer."""

import hashlib
import itertools
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from lmxexp.interfaces import ConfigError

Documents = Callable[[], Iterable[str]]
"""Gives the documents of a split, from the start at every call, so that large ones need not be in memory. One that is
large itself comes in pieces (`Continued`)."""

Place = dict[str, Any]
"""Where in the documents of a split one is, in JSON. ``{"items": n}``: after the first n."""

PIECE = 1 << 16
"""Characters of a piece, about."""
FARTHEST = 1 << 22
"""Characters after which a text is cut wherever it is."""


class Continued(str):
    """Text that goes on with the document before it: nothing stands in between."""

    __slots__ = ()


@runtime_checkable
class Reader(Protocol):
    """Documents on their way, which know where they are."""

    def __iter__(self) -> Iterator[str]: ...

    def __next__(self) -> str: ...

    def place(self) -> Place:
        """After the last document that was given: `Seekable.at` goes on from here."""
        ...


@runtime_checkable
class Seekable(Protocol):
    """`Documents` that go on at a `Place` without reading what is before."""

    def at(self, place: Place) -> Reader: ...


class _Counted:
    """The `Reader` of documents that can only be read from the start."""

    def __init__(self, items: Iterable[str], passed: int):
        self._items, self._n = itertools.islice(items, passed, None), passed

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        item = next(self._items)
        self._n += 1
        return item

    def place(self) -> Place:
        return {"items": self._n}


def read_from(documents: Documents, place: Place) -> Reader:
    """The documents after a place; ``{"items": 0}`` is the start."""
    if isinstance(documents, Seekable):
        return documents.at(place)
    return _Counted(documents(), place["items"])


@dataclass(frozen=True)
class Corpus:
    """The documents to train on and those to validate on."""

    train: Documents
    validation: Documents
    fingerprint: str
    """Two corpora of equal fingerprints hold the same text, cut the same way."""
    origin: dict[str, Any]
    """Where the text came from, for the run's record."""


def cut(documents: Documents, n_chars: Callable[[], int], val_fraction: float) -> tuple[Documents, Documents]:
    """Give the first ``int(n * (1 - val_fraction))`` of ``n`` characters to training and the rest to validation.

    The cut goes through the document that it falls into. ``n_chars`` is only called when a split is read. Both splits
    are read from the start, so what they come from is read once more for the validation.

    Source: the split of nanoGPT's character data sets (Karpathy, 2022), with documents.
    """

    def n_train() -> int:
        return int(n_chars() * (1 - val_fraction))

    def before() -> Iterator[str]:
        left = n_train()
        for document in documents():
            if left <= 0:
                return
            yield document if len(document) <= left else type(document)(document[:left])
            left -= len(document)

    def after() -> Iterator[str]:
        skip = n_train()
        for document in documents():
            if skip < len(document):
                yield document[skip:] if skip else document
                skip = 0
            else:
                skip -= len(document)

    return before, after


def check_fraction(val_fraction: float) -> None:
    """Refuse a share of the text that leaves one of the splits empty."""
    if not 0 < val_fraction < 1:
        raise ConfigError(
            f"data.val_fraction={val_fraction} must lie between 0 and 1, both excluded: 0.1 validates on a tenth"
        )


def fingerprint_of(*parts: Any) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# A word of GPT-2's pattern ends, and the next one begins, between these, whatever else there is in the text.
_WORD = r"\w" + re.escape(string.punctuation)
_BORDER = re.compile(rf"(?<=[{_WORD}]\n)(?=[{_WORD}])|(?<=[{_WORD}])(?= [{_WORD}])")


def pieces(chunks: Iterable[str]) -> Iterator[str]:
    """A document that comes in chunks, in pieces of about `PIECE` characters that can be encoded one by one.

    It is cut at single spaces and line ends, where a tokenizer with GPT-2's pattern begins a new word in any case. A
    text that has none for `FARTHEST` characters is cut wherever it is then.
    """
    made: type[str] = str
    text, looked = "", 0
    for chunk in chunks:
        text += chunk
        start = 0
        while len(text) - start > PIECE:
            found = _BORDER.search(text, max(start + PIECE, looked))
            if found is not None and 0 < found.start() < len(text):
                end = found.start()
            elif len(text) - start > FARTHEST:
                end = start + FARTHEST
            else:
                looked = max(len(text) - 2, start)  # the border may lie across the chunks
                break
            yield made(text[start:end])
            made, start, looked = Continued, end, 0
        if start:
            text, looked = text[start:], max(looked - start, 0)
    if text:
        yield cast(str, made(text))
