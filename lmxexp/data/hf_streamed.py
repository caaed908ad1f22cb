"""A data set of the ``datasets`` library that is read on the way, from the hub or from local files."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmxexp.data.cache import warn_unwritable, write_atomically
from lmxexp.data.corpus import Corpus, Documents, fingerprint_of, pieces
from lmxexp.data.hf_corpus import Selection, check_column, check_type, described, said_clearly
from lmxexp.data.text_files import chunks
from lmxexp.data.text_rows import ROWS, ParquetRows, StreamedRows
from lmxexp.interfaces import ConfigError


def streamed_corpus(source: dict[str, Any], selection: Selection, cache_dir: Path) -> Corpus:
    """The rows of one text column, as two splits, of which nothing is read before it is asked for.

    The fingerprint is that of the files: their names, with the commit on the hub and with size and time locally. It is
    kept in ``cache_dir``, so that a run whose tokens are there needs no network.

    Args:
        source: ``name``, ``config``, ``data_files`` and ``revision`` of `HuggingFace`.
        selection: what of it; a fraction of characters cannot be told before all is read.
        cache_dir: where fingerprints are kept.

    Raises:
        ConfigError: see `HuggingFace`; where neither ``val_split`` nor ``val_documents`` is given.
    """
    if selection.val_split is None and selection.val_documents is None:
        raise ConfigError(
            f"data.val_fraction={selection.val_fraction} cannot be cut off the end of what data.streaming=true has not "
            "read: set data.val_documents=1000, which validates on the first rows, or data.val_split"
        )
    origin = {**source, **vars(selection), "streaming": True}
    del origin["val_fraction"]
    kept = cache_dir / "sources" / f"{fingerprint_of('streamed', origin)[:32]}.json"
    try:
        made = _Streamed(source, selection)
    except ConfigError as error:
        if not isinstance(error.__cause__, ConnectionError) or not kept.is_file():
            raise
        # What is not among the tokens cannot be had; that is said when it is asked for.
        unreachable = _unreachable(error)
        return Corpus(unreachable, unreachable, json.loads(kept.read_text(encoding="utf-8")), origin)
    try:
        write_atomically(kept, lambda out: out.write(json.dumps(made.fingerprint).encode()))
    except OSError as error:
        warn_unwritable(cache_dir, error)
    return Corpus(made.train, made.validation, made.fingerprint, origin)


def _unreachable(error: ConfigError) -> Documents:
    def documents() -> Iterator[str]:
        raise error
        yield

    return documents


class _Streamed:
    def __init__(self, source: dict[str, Any], selection: Selection):
        import datasets

        self._source, self._column = source, selection.text_column
        with said_clearly(source, "data.split", selection.split):
            self._builder: Any = datasets.load_dataset_builder(
                source["name"], source["config"], data_files=source["data_files"], revision=source["revision"]
            )
        files = [self._files("data.split", selection.split)]
        stop, n_val = selection.max_documents, selection.val_documents
        if selection.val_split is not None:
            files.append(self._files("data.val_split", selection.val_split))
            self.train = self._documents("data.split", selection.split, 0, stop)
            self.validation = self._documents("data.val_split", selection.val_split, 0, None)
        else:
            self.train = self._documents("data.split", selection.split, n_val or 0, stop)
            self.validation = self._documents("data.split", selection.split, 0, n_val)
        rows = [selection.text_column, selection.val_documents, selection.max_documents]
        self.fingerprint = fingerprint_of("hf streamed", self._builder.name, rows, files)

    def _files(self, key: str, split: str) -> list[list[Any]]:
        """The files of a split, each with what changes when it does."""
        if "[" in split:
            raise ConfigError(
                f"{key}={split} is a slice, which data.streaming=true cannot take: set data.max_documents to read the "
                "first rows, or data.streaming=false"
            )
        by_split = self._builder.config.data_files
        if not by_split:  # the library has found an Arrow copy of its own, and no way to the files
            raise ConfigError(
                f"{described(self._source)} cannot be streamed, for its files are out of reach: check the network, or "
                "set data.streaming=false, which takes the copy that datasets keeps"
            ) from ConnectionError()
        if split not in by_split:
            raise ConfigError(f"{key}={split} is not a split of {self._source['name']}: it has {', '.join(by_split)}")
        found = by_split[split]
        sizes = [os.path.getsize(file) if os.path.isfile(file) else None for file in found]
        return [[file, list(of), size] for file, of, size in zip(found, found.origin_metadata, sizes, strict=True)]

    def _documents(self, key: str, split: str, start: int, stop: int | None) -> Documents:
        if self._source["name"] == "text":  # the library would read each file whole
            return _files_as_documents([str(file) for file in self._builder.config.data_files[split]][start:stop])
        with said_clearly(self._source, key, split), _without_torch():
            dataset = self._builder.as_streaming_dataset(split=split)
            if dataset.features is None:
                schema = next(dataset.with_format("arrow").iter(batch_size=1)).schema
            else:
                schema = dataset.features.arrow_schema
        check_column(self._source, schema.names, self._column)
        check_type(self._source, schema.field(self._column).type, self._column)
        if self._builder.config.__class__.__name__ == "ParquetConfig":
            files = [str(file) for file in self._builder.config.data_files[split]]
            return ParquetRows(files, self._column, described(self._source), start, stop)
        return StreamedRows(lambda: self._open(split), self._column, described(self._source), start, stop)

    def _open(self, split: str) -> Any:
        if self._builder.name == "csv":
            self._builder.config.chunksize = ROWS  # 10,000 otherwise
        with _without_torch():
            dataset = self._builder.as_streaming_dataset(split=split)
            return dataset.select_columns([self._column]).with_format("arrow")


@contextmanager
def _without_torch() -> Iterator[None]:
    """An ``IterableDataset`` imports PyTorch where it is installed, for its loaders: half a gigabyte, for nothing."""
    from datasets import config

    before = config.TORCH_AVAILABLE
    config.TORCH_AVAILABLE = before and "torch" in sys.modules
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = before


def _files_as_documents(files: list[str]) -> Documents:
    def documents() -> Iterator[str]:
        for file in files:
            yield from pieces(chunks("data.data_files", [file]))

    return documents
