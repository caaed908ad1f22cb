"""Text in two splits, before any tokenizer."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lmxexp.interfaces import ConfigError

Documents = Callable[[], Iterable[str]]
"""Gives the documents of a split, from the start at every call, so that large ones need not be in memory."""


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

    The cut goes through the document that it falls into. ``n_chars`` is only called when a split is read.

    Source: the split of nanoGPT's character data sets (Karpathy, 2022), with documents.
    """

    def n_train() -> int:
        return int(n_chars() * (1 - val_fraction))

    def before() -> Iterator[str]:
        left = n_train()
        for document in documents():
            if left <= 0:
                return
            yield document[:left]
            left -= len(document)

    def after() -> Iterator[str]:
        skip = n_train()
        for document in documents():
            if skip < len(document):
                yield document[skip:]
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
