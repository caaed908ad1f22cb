"""The tokens of one split on disk: flat files of numbers, each with a JSON beside it.

A directory holds ``00000.bin``, ``00001.bin``, … with their JSONs, ``starts.bin`` with the places where documents
start, and ``tokens.json``, which is written last: where it stands, the split is complete.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lmxexp.data.cache import write_atomically
from lmxexp.data.corpus import Place
from lmxexp.data.encode import Encoded
from lmxexp.data.tokens import Tokens

SHARD_TOKENS = 1 << 26
"""After which a shard is closed, at the next border of a document that ends a batch: the most that a kill costs."""

_BLOCK = 1 << 22


@dataclass(frozen=True)
class TokenInfo:
    """What ``tokens.json`` says of the tokens beside it."""

    tokenizer: str
    """Hash of the tokenizer that made them."""
    source: str
    """Fingerprint of the corpus."""
    split: str
    dtype: str
    """uint16, or uint32 for vocabularies above 65,536."""
    count: int
    documents: int
    bytes: int
    """UTF-8 bytes of the text, newlines between documents included."""
    sha256: str
    """Of the tokens."""
    lossless: bool | None
    """Whether decoding gives the text back, to the letter; None: not looked at."""
    shards: list[int]
    """Tokens in each."""


@dataclass(frozen=True)
class Shard:
    """What the JSON beside a shard says."""

    tokenizer: str
    source: str
    split: str
    dtype: str
    first_token: int
    """Tokens in the shards before."""
    count: int
    first_document: int
    """Documents that start in the shards before: where in ``starts.bin`` those of this shard are."""
    documents: int
    bytes: int
    lossless: bool | None
    sha256: str
    """Of all tokens up to the end of this shard."""
    place: Place
    """Where in the source it ends."""


class Totals:
    """What is known of the tokens so far."""

    def __init__(self, check_lossless: bool):
        self.count = self.documents = self.bytes = 0
        self.digest = hashlib.sha256()
        self.lossless = True if check_lossless else None

    def add(self, piece: Encoded) -> None:
        self.digest.update(piece.ids.data)
        self.count += len(piece.ids)
        self.documents += len(piece.starts)
        self.bytes += piece.bytes
        if self.lossless:
            self.lossless = piece.lossless

    def info(self, names: dict[str, str], shards: list[int]) -> TokenInfo:
        return TokenInfo(
            **names,
            count=self.count,
            documents=self.documents,
            bytes=self.bytes,
            sha256=self.digest.hexdigest(),
            lossless=self.lossless,
            shards=shards,
        )


def read(directory: Path, names: dict[str, str]) -> tuple[Tokens, TokenInfo] | None:
    """The tokens, if they are there and whole. Nothing is written, and no lock is taken."""
    try:
        info = TokenInfo(**json.loads((directory / "tokens.json").read_text(encoding="utf-8")))
        dtype = np.dtype(names["dtype"])
        if any(getattr(info, key) != value for key, value in names.items()):
            return None
        files = [_file(directory, i) for i in range(len(info.shards))]
        sizes = [(file, count * dtype.itemsize) for file, count in zip(files, info.shards, strict=True)]
        starts = directory / "starts.bin"
        if any(file.stat().st_size != size for file, size in [*sizes, (starts, 8 * info.documents)]):
            return None
        return Tokens([_mapped(file, dtype) for file in files], _mapped(starts, np.dtype(np.int64))), info
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone with the directory among all processes; the system frees it when a process dies.

    Raises:
        OSError: where the directory cannot be written or locked.
    """
    import filelock

    directory.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(directory / ".lock")
    try:
        try:
            lock.acquire(timeout=0.2)
        except filelock.Timeout:
            print(f"lmxexp: waiting for another process, which prepares the tokens in {directory}", file=sys.stderr)
            lock.acquire()
    except NotImplementedError as error:  # the file system knows no locks
        raise OSError(f"{directory} cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()


def done_so_far(directory: Path, names: dict[str, str], totals: Totals) -> list[Shard]:
    """The whole shards of a making that was interrupted, whose tokens are read back and added to ``totals``. What else
    it left is deleted; the lock is held, so it is nobody's."""
    for left in (*directory.glob(".*.tmp"), *directory.glob("*.unfinished")):
        left.unlink(missing_ok=True)
    shards: list[Shard] = []
    try:
        while True:
            file = _file(directory, len(shards))
            shard = Shard(**json.loads(file.with_suffix(".json").read_text(encoding="utf-8")))
            follows = (shard.first_token, shard.first_document) == (totals.count, totals.documents)
            if not follows or any(getattr(shard, key) != value for key, value in names.items()):
                return shards
            digest = totals.digest.copy()
            with open(file, "rb") as tokens:
                while block := tokens.read(_BLOCK):
                    digest.update(block)
            ends = 8 * (shard.first_document + shard.documents)
            if digest.hexdigest() != shard.sha256 or (directory / "starts.bin").stat().st_size < ends:
                return shards
            totals.digest = digest
            totals.count += shard.count
            totals.documents += shard.documents
            totals.bytes += shard.bytes
            totals.lossless = shard.lossless
            shards.append(shard)
    except (OSError, ValueError, TypeError):
        return shards


def write(
    directory: Path,
    names: dict[str, str],
    shards: list[Shard],
    totals: Totals,
    encoded: Iterator[Encoded],
    shown: Callable[[Totals, Place | None], None],
) -> None:
    """Write the shards that follow ``shards``, and then ``tokens.json``.

    A shard counts once its JSON is there. Its tokens, and the starts of its documents, are on disk before.

    Raises:
        OSError: where there is no room. The whole shards stay.
    """
    while (shard := _write_one(directory, names, len(shards), totals, encoded, shown)) is not None:
        shards.append(shard)
    with open(directory / "starts.bin", "ab") as file:  # of no documents, too
        file.truncate(8 * totals.documents)
    info = totals.info(names, [shard.count for shard in shards])
    write_atomically(directory / "tokens.json", lambda out: out.write(json.dumps(asdict(info)).encode()))


def _write_one(
    directory: Path,
    names: dict[str, str],
    index: int,
    totals: Totals,
    encoded: Iterator[Encoded],
    shown: Callable[[Totals, Place | None], None],
) -> Shard | None:
    first_token, first_document, bytes_before = totals.count, totals.documents, totals.bytes
    starts: list[np.ndarray] = []
    place: Place | None = None
    file = _file(directory, index)
    unfinished = file.with_suffix(".unfinished")  # the lock is held: nobody else has one of this name
    try:
        with open(unfinished, "wb") as out:
            for piece in encoded:
                starts.append(piece.starts + totals.count)
                totals.add(piece)
                out.write(piece.ids.data)
                place = piece.place
                shown(totals, place)
                if totals.count - first_token >= SHARD_TOKENS and place is not None:
                    break
            if not starts:
                return None
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    assert place is not None  # the last text ends a document
    with open(directory / "starts.bin", "r+b" if first_document else "wb") as out:
        out.seek(8 * first_document)
        for some in starts:
            out.write(some.data)
        out.truncate()
        out.flush()
        os.fsync(out.fileno())
    shard = Shard(
        **names,
        first_token=first_token,
        count=totals.count - first_token,
        first_document=first_document,
        documents=totals.documents - first_document,
        bytes=totals.bytes - bytes_before,
        lossless=totals.lossless,
        sha256=totals.digest.hexdigest(),
        place=place,
    )
    write_atomically(file.with_suffix(".json"), lambda out: out.write(json.dumps(asdict(shard)).encode()))
    return shard


def has_some(directory: Path) -> bool:
    """Whether a shard is whole."""
    return _file(directory, 0).with_suffix(".json").exists()


def _file(directory: Path, index: int) -> Path:
    return directory / f"{index:05}.bin"


def _mapped(file: Path, dtype: np.dtype) -> np.ndarray:
    if file.stat().st_size == 0:  # no empty file can be mapped
        return np.empty(0, dtype)
    # As a plain array: indexing a np.memmap is slower, for it makes a np.memmap again.
    return np.asarray(np.memmap(file, dtype, mode="r"))
