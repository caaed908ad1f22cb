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


class _OnTheWay:
    """Rows that are read when they are asked for, no more than a batch of them in memory.

    Args:
        described: the settings that name the data set, for errors.
        start: the first row.
        stop: the row after the last; None: all.
    """

    def __init__(self, described: str, start: int, stop: int | None):
        self._described, self._start, self._stop = described, start, stop
        self.total = stop

    def __call__(self) -> Iterator[str]:
        return self.at({"items": 0})

    def at(self, place: Place) -> RowReader:
        first = max(self._start, place["items"])
        return RowReader(self._said_clearly(self._batches(place, first)), first, self._stop)

    def _batches(self, place: Place, first: int) -> Iterator[_Batch]:
        """From the place, or from any batch between it and the row ``first``."""
        raise NotImplementedError

    def _said_clearly(self, batches: Iterator[_Batch]) -> Iterator[_Batch]:
        row = 0
        try:
            for batch in batches:
                yield batch
                row = batch.first + len(batch.texts)
        except Exception as error:  # each builder, and each way over the network, raises its own
            raise ConfigError(
                f"{self._described} could not be read beyond row {row} ({one_line(error)}): check the network or the "
                "file, and give the same command again, which goes on after the last whole shard"
            ) from error


class StreamedRows(_OnTheWay):
    """The rows of any streamed data set.

    Args:
        load: gives the ``datasets.IterableDataset`` of Arrow tables with the column; called for every pass.
        text_column: the column.
        described, start, stop: as above.
    """

    def __init__(
        self, load: Callable[[], Any], text_column: str, described: str, start: int = 0, stop: int | None = None
    ):
        super().__init__(described, start, stop)
        self._load, self._column = load, text_column

    def _batches(self, place: Place, first: int) -> Iterator[_Batch]:
        dataset = self._load()
        row, state = place.get("batch", 0), place.get("state")
        if state is not None:
            dataset.load_state_dict(state)
        for table in dataset.iter(batch_size=ROWS):
            texts = table.column(self._column).to_pylist()
            yield _Batch(row, texts, state)
            row += len(texts)
            state = dataset.state_dict()


class ParquetRows(_OnTheWay):
    """The rows of Parquet files. ``datasets`` would read a whole row group at once, which can be gigabytes.

    Args:
        files: local paths, or addresses that ``fsspec`` knows.
        text_column: the column; of the others nothing is read.
        described, start, stop: as above.
    """

    def __init__(self, files: list[str], text_column: str, described: str, start: int = 0, stop: int | None = None):
        super().__init__(described, start, stop)
        self._files, self._column = files, text_column

    def _batches(self, place: Place, first: int) -> Iterator[_Batch]:
        import fsspec
        import pyarrow.parquet as pq

        state = place.get("state", {"file": 0, "row": 0})
        row = state["row"]
        for index in range(state["file"], len(self._files)):
            state = {"file": index, "row": row}
            with fsspec.open(self._files[index], "rb") as file:
                # Without a buffer, and with what is called pre_buffer, a column's part of a row group is read at once.
                parquet = pq.ParquetFile(file, buffer_size=1 << 22, pre_buffer=False)
                groups = []
                for group in range(parquet.num_row_groups):
                    n_rows = parquet.metadata.row_group(group).num_rows
                    if not groups and row + n_rows <= first:
                        row += n_rows
                    else:
                        groups.append(group)
                for table in parquet.iter_batches(ROWS, groups, [self._column], use_threads=False) if groups else ():
                    texts = table.column(0).to_pylist()
                    yield _Batch(row, texts, state)
                    row += len(texts)


def one_line(error: BaseException) -> str:
    """What an error says, cut to the length of a message."""
    return " ".join(str(error).split())[:400] or type(error).__name__
