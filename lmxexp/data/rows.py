"""Rows of a text column as documents, read in batches and from any row on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from lmxexp.data.corpus import Place
from lmxexp.interfaces import ConfigError

ROWS = 1000
"""Of a column turned into Python strings at once."""


class _Batch(NamedTuple):
    first: int
    """Its first row, counted from the start of the split."""
    texts: list[str | None]
    state: Any
    """Of the data set before it; None: the batch is found by its row."""


class RowReader:
    """The `Reader` of rows; those without text are passed by.

    Args:
        batches: in order, without a gap.
        start: rows before are left out.
        stop: rows from here on are left out; None: there are none.
    """

    def __init__(self, batches: Iterator[_Batch], start: int, stop: int | None):
        self._batches, self._row, self._stop = batches, start, stop
        self._batch = _Batch(start, [], None)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self._stop is None or self._row < self._stop:
            i = self._row - self._batch.first
            if i >= len(self._batch.texts):
                self._batch = next(self._batches)
                continue
            self._row += 1
            if text := self._batch.texts[i]:  # a missing one is None
                return text
        raise StopIteration

    def place(self) -> Place:
        if self._batch.state is None:
            return {"items": self._row}
        return {"items": self._row, "batch": self._batch.first, "state": self._batch.state}


class ColumnRows:
    """The rows of an Arrow column, which is at hand.

    Args:
        column: of strings.
        start: the first row.
        stop: the row after the last; None: all.
    """

    def __init__(self, column: Any, start: int = 0, stop: int | None = None):
        self._column = column
        self._start = start
        self.total = len(column) if stop is None else min(stop, len(column))

    def __call__(self) -> Iterator[str]:
        return self.at({"items": 0})

    def at(self, place: Place) -> RowReader:
        start = max(self._start, place["items"])

        def batches() -> Iterator[_Batch]:
            for first in range(start, self.total, ROWS):
                yield _Batch(first, self._column.slice(first, ROWS).to_pylist(), None)

        return RowReader(batches(), start, self.total)


class StreamedRows:
    """The rows of a data set that is read on the way: no more than a batch of it is in memory.

    Args:
        load: gives the ``datasets.IterableDataset``, of the column alone; called for every pass.
        text_column: the column.
        described: the settings that name the data set, for errors.
        start: the first row.
        stop: the row after the last; None: all.
    """

    def __init__(
        self, load: Callable[[], Any], text_column: str, described: str, start: int = 0, stop: int | None = None
    ):
        self._load, self._column, self._described = load, text_column, described
        self._start, self._stop = start, stop
        self.total = stop

    def __call__(self) -> Iterator[str]:
        return self.at({"items": 0})

    def at(self, place: Place) -> RowReader:
        # Rows before the first batch that is read are nobody's to ask for: the state has passed them.
        return RowReader(self._batches(place), max(self._start, place["items"]), self._stop)

    def _batches(self, place: Place) -> Iterator[_Batch]:
        first = place.get("batch", 0)
        try:
            dataset = self._load().with_format("arrow")
            if "state" in place:
                dataset.load_state_dict(place["state"])
            state = place.get("state")
            for table in dataset.iter(batch_size=ROWS):
                texts = table.column(self._column).to_pylist()
                yield _Batch(first, texts, state)
                first += len(texts)
                state = dataset.state_dict()
        except ConfigError:
            raise
        except Exception as error:  # each builder, and each way over the network, raises its own
            raise ConfigError(
                f"{self._described} could not be read beyond row {first} ({one_line(error)}): check the network or the "
                "file, and give the same command again, which goes on after the last whole shard"
            ) from error


def one_line(error: BaseException) -> str:
    """What an error says, cut to the length of a message."""
    return " ".join(str(error).split())[:400] or type(error).__name__
