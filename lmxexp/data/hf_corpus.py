"""A data set of the ``datasets`` library that is loaded whole: mapped from its Arrow copy on disk."""

from __future__ import annotations

import difflib
import functools
import socket
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lmxexp.data.corpus import Corpus, cut, fingerprint_of
from lmxexp.data.text_rows import ColumnRows, one_line
from lmxexp.interfaces import ConfigError


@dataclass(frozen=True)
class Selection:
    """Which rows train and which validate; the arguments of `HuggingFace` of these names."""

    split: str
    val_split: str | None
    val_documents: int | None
    val_fraction: float
    max_documents: int | None
    text_column: str

    def __post_init__(self) -> None:
        if self.val_split is not None and self.val_documents is not None:
            raise ConfigError(
                f"data.val_documents={self.val_documents} would be ignored, for data.val_split={self.val_split} "
                "validates: set one of them to null"
            )
        for key in ("val_documents", "max_documents"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"data.{key}={value} must be at least 1, or null")
        if self.val_documents and self.max_documents and self.val_documents >= self.max_documents:
            raise ConfigError(
                f"data.val_documents={self.val_documents} leaves none of data.max_documents={self.max_documents} to "
                "train on: take fewer of the one or more of the other"
            )


def loaded_corpus(source: dict[str, Any], selection: Selection) -> Corpus:
    """The rows of one text column, as two splits.

    Args:
        source: ``name``, ``config``, ``data_files`` and ``revision`` of `HuggingFace`.
        selection: what of it.

    Raises:
        ConfigError: see `HuggingFace`.
    """
    column, fingerprint = _text_column(source, "data.split", selection.split, selection.text_column)
    names = {"split": selection.split, "val_split": selection.val_split, "text_column": selection.text_column}
    origin = {**source, **names, "rows": len(column)}
    parts: list[Any] = ["hf", selection.text_column, fingerprint]
    if selection.max_documents is not None:
        column = column.slice(0, selection.max_documents)
        parts.append({"max_documents": selection.max_documents})
        origin["max_documents"] = selection.max_documents
    if selection.val_split is not None:
        val_column, val_fingerprint = _text_column(source, "data.val_split", selection.val_split, selection.text_column)
        train, validation = ColumnRows(column), ColumnRows(val_column)
        parts.append(val_fingerprint)
        origin["val_rows"] = len(val_column)
    elif selection.val_documents is not None:
        train = ColumnRows(column, start=selection.val_documents)
        validation = ColumnRows(column, stop=selection.val_documents)
        parts.append({"val_documents": selection.val_documents})
        origin["val_documents"] = selection.val_documents
    else:
        train, validation = cut(ColumnRows(column), functools.cache(lambda: _n_chars(column)), selection.val_fraction)
        parts.append(selection.val_fraction)
    return Corpus(train=train, validation=validation, fingerprint=fingerprint_of(*parts), origin=origin)


def _text_column(source: dict[str, Any], key: str, split: str, text_column: str) -> tuple[Any, str]:
    """The Arrow column and the fingerprint that ``datasets`` gives to what it loaded."""
    import datasets

    # The text builder's default makes every line a row and drops its newline.
    options: dict[str, Any] = {"sample_by": "document"} if source["name"] == "text" else {}
    with said_clearly(source, key, split):
        dataset: Any = datasets.load_dataset(
            source["name"],
            source["config"],
            split=split,
            data_files=source["data_files"],
            revision=source["revision"],
            **options,
        )
    check_column(source, dataset.column_names, text_column)
    # The column as it lies in Arrow: rows through the data set's own indexing take a hundred times longer.
    column = dataset.data.column(text_column)
    check_type(source, column.type, text_column)
    # Private, but what the library's own cache relies on; a hash of gigabytes of text would take seconds a start.
    return column, dataset._fingerprint


def _n_chars(column: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.utf8_length(column)).as_py() or 0)  # pyright: ignore


def check_column(source: dict[str, Any], names: Sequence[str], text_column: str) -> None:
    """Refuse a column that is not there."""
    if text_column not in names:
        close = difflib.get_close_matches(text_column, names, 1)
        raise ConfigError(
            f"data.text_column={text_column} is not a column of {source['name']}: it has {', '.join(names)}"
            + (f"; did you mean {close[0]}?" if close else "")
        )


def check_type(source: dict[str, Any], type: Any, text_column: str) -> None:
    """Refuse a column of another Arrow type than text."""
    import pyarrow as pa

    if not (pa.types.is_string(type) or pa.types.is_large_string(type)):
        raise ConfigError(f"data.text_column={text_column} of {source['name']} holds {type}, not text: take another")


@contextmanager
def said_clearly(source: dict[str, Any], key: str, split: str) -> Iterator[None]:
    """What ``datasets`` raises while it loads, as a `ConfigError`; ``key`` is the setting that names the split."""
    name = source["name"]
    nowhere = _host_without_address(name)
    try:
        with _offline() if nowhere else nullcontext():
            yield
    except ConfigError:
        raise
    except ConnectionError as error:  # the library's offline mode is one as well
        why = f"{nowhere} has no address" if nowhere else one_line(error)
        raise ConfigError(
            f"data.name={name} is not in the local cache and could not be downloaded ({why}): check the "
            "network, or give a local text file as data.path=FILE, or take data=python_stdlib, which needs none"
        ) from error
    except FileNotFoundError as error:  # of files, data sets and revisions
        raise ConfigError(
            f"{described(source)} cannot be found ({one_line(error)}): check the name, and the network if it is on "
            "the hub"
        ) from error
    except Exception as error:  # each builder raises its own
        if "zstd" in str(error):
            raise ConfigError(
                f"{described(source)} is compressed with zstd, which Python reads with a package: pip install zstandard"
            ) from error
        if isinstance(error, ValueError) and "split" in str(error).lower():
            raise ConfigError(f"{key}={split} is not a split of {name}: {one_line(error)}") from error
        raise ConfigError(
            f"{described(source)} cannot be loaded ({one_line(error.__cause__ or error)}): check that data.name is "
            "the right builder for the files, and data.config one that the data set has"
        ) from error


def _host_without_address(name: str) -> str | None:
    """The hub's host, if ``name`` is on it and there is no network that knows it."""
    from huggingface_hub import constants

    local = name.count("/") != 1 or name.startswith((".", "~", "/")) or Path(name).exists()
    if local or {"https", "all"} & set(urllib.request.getproxies()):  # a proxy knows addresses that are unknown here
        return None
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return host
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """The libraries' offline mode. Without, they try for half a minute before they take what they have."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def described(source: dict[str, Any]) -> str:
    """The settings that name a data set."""
    return " ".join(f"data.{key}={value}" for key, value in source.items() if value is not None)
