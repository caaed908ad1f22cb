"""From documents to tokens, a bounded number at a time."""

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmxexp.data.corpus import PIECE, Continued, Place, Reader, pieces
from lmxexp.interfaces import Tokenizer

_BATCH_CHARS = 1_000_000
"""Of text encoded at once: gives every core something to do. A token takes 150 bytes until it is a number."""


@dataclass(frozen=True)
class Encoded:
    """The tokens of some texts that follow each other."""

    ids: np.ndarray
    starts: np.ndarray
    """Where in ``ids`` documents start."""
    bytes: int
    """UTF-8 bytes of the text, newlines between documents included."""
    lossless: bool
    """Whether decoding gives the text back, to the letter; True where nobody looked."""
    place: Place | None
    """Where the reader was after the last text; None in the middle of a document."""


@dataclass(frozen=True)
class _Text:
    text: str
    starts: bool
    """Whether a document does."""
    place: Place | None


def encode(
    reader: Reader, tokenizer: Tokenizer, dtype: np.dtype, *, first: bool, check_lossless: bool
) -> Generator[Encoded, None, None]:
    """Encode what the reader gives, a few batches ahead of the caller.

    Documents are joined by the tokenizer's end-of-text token, or by a newline where it has none. Both stand before a
    document, so there is none after the last. Where the batches end depends on where the reader began.

    Args:
        reader: gives documents, or pieces of them.
        tokenizer: one with a true ``encodes_pieces`` gets long documents in pieces; others get them whole.
        dtype: of the tokens.
        first: whether nothing stands before what the reader gives.
        check_lossless: decode, and compare.
    """
    return _ahead(_batches(reader, tokenizer, dtype, first, check_lossless))


def _batches(
    reader: Reader, tokenizer: Tokenizer, dtype: np.dtype, first: bool, check_lossless: bool
) -> Generator[Encoded, None, None]:
    in_pieces = bool(getattr(tokenizer, "encodes_pieces", False))
    # While one makes numbers of what the library gave, which takes Python's lock, all cores encode for the other.
    workers = 2 if hasattr(tokenizer, "encode_batch") else 1
    with ThreadPoolExecutor(workers, "lmxexp-encode") as pool:
        made: deque[Future[Encoded]] = deque()
        try:
            for batch in _grouped(_in_pieces(reader) if in_pieces else _whole(reader)):
                made.append(pool.submit(_encoded, batch, tokenizer, dtype, first, check_lossless))
                first = False
                if len(made) > workers:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _encoded(batch: list[_Text], tokenizer: Tokenizer, dtype: np.dtype, first: bool, check_lossless: bool) -> Encoded:
    eos = tokenizer.eos_id
    joint = tokenizer.encode("\n") if eos is None else np.array([eos], dtype)
    joint_bytes = 1 if eos is None else 0
    parts: list[np.ndarray] = []
    starts: list[int] = []
    count = n_bytes = 0
    lossless = True
    for one, ids in zip(batch, _encode(tokenizer, [one.text for one in batch]), strict=True):
        n_bytes += len(one.text) if one.text.isascii() else len(one.text.encode("utf-8"))
        if one.starts or first:
            if not first:
                parts.append(joint)
                count, n_bytes = count + len(joint), n_bytes + joint_bytes
            starts.append(count)
            first = False
        parts.append(ids)
        count += len(ids)
        if check_lossless and lossless:
            lossless = tokenizer.decode(ids.tolist()) == one.text
    joined = np.concatenate(parts)
    assert joined.size == 0 or joined.max() < tokenizer.vocab_size, "a token beyond the vocabulary"
    return Encoded(np.ascontiguousarray(joined, dtype), np.array(starts, np.int64), n_bytes, lossless, batch[-1].place)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> Iterable[np.ndarray]:
    encode_batch = getattr(tokenizer, "encode_batch", None)
    return map(tokenizer.encode, texts) if encode_batch is None else encode_batch(texts)


def _in_pieces(reader: Reader) -> Iterator[_Text]:
    for item in reader:
        if not item:
            continue
        starts = not isinstance(item, Continued)
        if len(item) <= 2 * PIECE:
            yield _Text(item, starts, reader.place())
            continue
        cut = list(pieces([item]))
        for piece in cut[:-1]:
            yield _Text(piece, starts, None)
            starts = False
        yield _Text(cut[-1], starts, reader.place())


def _whole(reader: Reader) -> Iterator[_Text]:
    """Documents put together from their pieces."""
    held: list[str] = []
    starts, place = True, reader.place()
    for item in reader:
        if item:
            if held and not isinstance(item, Continued):
                yield _Text("".join(held), starts, place)
                held = []
            if not held:
                starts = not isinstance(item, Continued)
            held.append(item)
        place = reader.place()
    if held:
        yield _Text("".join(held), starts, place)


def _grouped(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    group: list[_Text] = []
    n_chars = 0
    for one in texts:
        group.append(one)
        n_chars += len(one.text)
        if n_chars >= _BATCH_CHARS:
            yield group
            group, n_chars = [], 0
    if group:
        yield group


def _ahead(source: Generator[Encoded, None, None]) -> Generator[Encoded, None, None]:
    """The same, made by a thread while the caller writes what came before."""
    made: queue.Queue[Any] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def hand_over(item: Any) -> bool:
        while not stop.is_set():
            try:
                made.put(item, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for item in source:
                if not hand_over(item):
                    return
            hand_over(None)
        except BaseException as error:
            hand_over(error)
        finally:
            source.close()

    thread = threading.Thread(target=work, name="lmxexp-read", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
