"""The tokens of one split: from the cache, or made and kept there."""

import errno
from pathlib import Path

import numpy as np

from lmxexp.data import shards
from lmxexp.data.cache import warn_unwritable
from lmxexp.data.corpus import Documents, fingerprint_of, read_from
from lmxexp.data.encode import encode
from lmxexp.data.progress import Progress
from lmxexp.data.shards import TokenInfo, Totals
from lmxexp.data.tokens import Tokens
from lmxexp.interfaces import ConfigError, Tokenizer

FORMAT = 2
"""Part of every directory's name: raise it when the same text and tokenizer come to give other tokens or files."""

_START = {"items": 0}
_FULL = (errno.ENOSPC, errno.EDQUOT)


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

    They are written shard by shard, and a making that was interrupted goes on after its last whole shard, in the same
    process or another; the result is the same to the byte. Of several processes one makes them and the others wait.

    Documents are joined by the tokenizer's end-of-text token, or by a newline where it has none. A cache that cannot
    be written costs a warning, and the tokens are kept in memory.

    Raises:
        ConfigError: where the disk is full after at least one whole shard, which may be more than memory holds; what
            the documents raise.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    directory = cache_dir / "tokens" / f"{split}-{fingerprint_of(FORMAT, source, tokenizer_hash)[:32]}"
    names = {"tokenizer": tokenizer_hash, "source": source, "split": split, "dtype": dtype.name}
    found = shards.read(directory, names)
    if found is not None:
        return found
    try:
        with shards.locked(directory):
            found = shards.read(directory, names)  # made by the process that was waited for
            if found is None:
                _make(directory, names, documents, tokenizer, check_lossless)
                found = shards.read(directory, names)
    except OSError as error:
        if error.errno in _FULL and shards.has_some(directory):
            raise ConfigError(
                f"data.cache_dir={cache_dir} has no room for the tokens of the {split} split ({error.strerror}): make "
                "room and give the same command again, which goes on from there; or set data.cache_dir or "
                "LMXEXP_CACHE to a directory with more"
            ) from error
        warn_unwritable(cache_dir, error)
    if found is not None:  # None: unwritable, or somebody is emptying the cache
        return found
    return _in_memory(names, documents, tokenizer, check_lossless)


def _make(
    directory: Path, names: dict[str, str], documents: Documents, tokenizer: Tokenizer, check_lossless: bool
) -> None:
    totals = Totals(check_lossless)
    done = shards.done_so_far(directory, names, totals)
    reader = read_from(documents, done[-1].place if done else _START)
    dtype = np.dtype(names["dtype"])
    encoded = encode(reader, tokenizer, dtype, first=not totals.documents, check_lossless=check_lossless)
    with Progress(names["split"], documents, totals) as shown:
        try:
            shards.write(directory, names, done, totals, encoded, shown)
        finally:
            encoded.close()


def _in_memory(
    names: dict[str, str], documents: Documents, tokenizer: Tokenizer, check_lossless: bool
) -> tuple[Tokens, TokenInfo]:
    totals = Totals(check_lossless)
    ids, starts = [np.empty(0, np.dtype(names["dtype"]))], [np.empty(0, np.int64)]
    reader = read_from(documents, _START)
    with Progress(names["split"], documents, totals) as shown:
        for piece in encode(reader, tokenizer, ids[0].dtype, first=True, check_lossless=check_lossless):
            starts.append(piece.starts + totals.count)
            ids.append(piece.ids)
            totals.add(piece)
            shown(totals, piece.place)
    return Tokens([np.concatenate(ids)], np.concatenate(starts)), totals.info(names, [totals.count])
