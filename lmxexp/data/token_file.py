"""The tokens of one split: a flat array in a memory-mapped file, with a JSON beside it."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmxexp.data.cache import warn_unwritable, write_atomically
from lmxexp.data.corpus import Documents, fingerprint_of
from lmxexp.data.tokens import Tokens
from lmxexp.interfaces import Tokenizer

FORMAT = 1
"""Part of every file's name: raise it when the same text and tokenizer come to give other tokens."""

_BATCH_CHARS = 4_000_000  # of text encoded at once: bounds the memory, and gives every core something to do


@dataclass(frozen=True)
class TokenInfo:
    """What the JSON says of the tokens beside it."""

    tokenizer: str
    """Hash of the tokenizer that made them."""
    source: str
    """Fingerprint of the corpus."""
    split: str
    dtype: str
    """uint16, or uint32 for vocabularies above 65,536."""
    count: int
    bytes: int
    """UTF-8 bytes of the text, newlines between documents included."""
    sha256: str
    """Of the tokens."""
    lossless: bool | None
    """Whether decoding gives the text back, to the letter; None: not looked at."""
    starts: list[int]
    """Where each document's own first token is; what joins it to the next belongs to it."""


def tokens_of(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    tokenizer_hash: str,
    source: str,
    split: str,
    cache_dir: Path,
    check_lossless: bool = False,
) -> tuple[Tokens, TokenInfo]:
    """The tokens of a split, from the cache if they are there.

    Documents are joined by the tokenizer's end-of-text token, or by a newline where it has none. A cache that cannot
    be written costs a warning, and the tokens are kept in memory.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    name = f"{split}-{fingerprint_of(FORMAT, source, tokenizer_hash)[:32]}"
    file = cache_dir / "tokens" / f"{name}.bin"
    expected = {"tokenizer": tokenizer_hash, "source": source, "split": split, "dtype": dtype.name}
    found = _read(file, expected)
    if found is not None:
        return found

    encoder = _Encoder(documents, tokenizer, dtype, check_lossless)
    try:
        write_atomically(file, lambda out: [out.write(ids.data) for ids in encoder])
        info = encoder.info(**expected)
        # Last: where the JSON stands, the tokens are complete.
        write_atomically(file.with_suffix(".json"), lambda out: out.write(json.dumps(asdict(info)).encode()))
    except OSError as error:
        warn_unwritable(cache_dir, error)
    else:
        found = _read(file, expected)
        if found is not None:  # None: somebody is emptying the cache
            return found
    encoder = _Encoder(documents, tokenizer, dtype, check_lossless)
    ids = np.concatenate([np.empty(0, dtype), *encoder])
    info = encoder.info(**expected)
    return _with_starts(ids, info), info


def _with_starts(ids: np.ndarray, info: TokenInfo) -> Tokens:
    return Tokens([ids], np.array(info.starts, np.int64))


def _read(file: Path, expected: dict[str, str]) -> tuple[Tokens, TokenInfo] | None:
    try:
        info = TokenInfo(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
        dtype = np.dtype(expected["dtype"])
        if any(getattr(info, key) != value for key, value in expected.items()):
            return None
        if file.stat().st_size != info.count * dtype.itemsize:
            return None
        if info.count == 0:  # no empty file can be mapped
            return _with_starts(np.empty(0, dtype), info), info
        # As a plain array: indexing a np.memmap is slower, for it makes a np.memmap again.
        return _with_starts(np.asarray(np.memmap(file, dtype, mode="r")), info), info
    except (OSError, ValueError, TypeError):
        return None


class _Encoder:
    """Iterates over the tokens of documents, piece by piece, and adds up what `TokenInfo` wants to know."""

    def __init__(self, documents: Documents, tokenizer: Tokenizer, dtype: np.dtype, check_lossless: bool):
        self.documents, self.tokenizer, self.dtype = documents, tokenizer, dtype
        self.count = self.n_bytes = 0
        self.digest = hashlib.sha256()
        self.starts: list[int] = []
        self.lossless = True if check_lossless else None

    def __iter__(self) -> Iterator[np.ndarray]:
        eos = self.tokenizer.eos_id
        joint = self.tokenizer.encode("\n") if eos is None else np.array([eos], self.dtype)
        joint_bytes = 1 if eos is None else 0
        first = True
        place = 0
        for texts in _groups(self.documents()):
            parts = []
            for text, ids in zip(texts, self._encode(texts), strict=True):
                self.n_bytes += len(text.encode("utf-8")) + (0 if first else joint_bytes)
                parts += [ids] if first else [joint, ids]
                place += 0 if first else len(joint)
                self.starts.append(place)
                place += len(ids)
                first = False
                if self.lossless:
                    self.lossless = self.tokenizer.decode(ids.tolist()) == text
            joined = np.concatenate(parts)
            assert joined.size == 0 or joined.max() < self.tokenizer.vocab_size, "a token beyond the vocabulary"
            joined = np.ascontiguousarray(joined, self.dtype)
            self.count += joined.size
            self.digest.update(joined.data)
            yield joined

    def _encode(self, texts: list[str]) -> Iterable[np.ndarray]:
        encode_batch = getattr(self.tokenizer, "encode_batch", None)
        return map(self.tokenizer.encode, texts) if encode_batch is None else encode_batch(texts)

    def info(self, **names: Any) -> TokenInfo:
        return TokenInfo(
            **names,
            count=self.count,
            bytes=self.n_bytes,
            sha256=self.digest.hexdigest(),
            lossless=self.lossless,
            starts=self.starts,
        )


def _groups(documents: Iterable[str]) -> Iterator[list[str]]:
    group: list[str] = []
    n_chars = 0
    for document in documents:
        if not document:
            continue
        group.append(document)
        n_chars += len(document)
        if n_chars >= _BATCH_CHARS:
            yield group
            group, n_chars = [], 0
    if group:
        yield group
