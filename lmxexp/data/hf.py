"""Any text data set that the ``datasets`` library loads, from the hub or from local files."""

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmxexp.data.corpus import Corpus, Documents, check_fraction, cut, fingerprint_of
from lmxexp.data.download import download, is_url
from lmxexp.data.text_files import corpus_of_files
from lmxexp.data.token_stream import Order, Packing, TokenStream
from lmxexp.interfaces import ConfigError, Tokenizer

_ROWS = 1000  # of a column turned into Python strings at once


class HuggingFace(TokenStream):
    """Every row of one text column is a document.

    Args:
        tokenizer: factory of the tokenizer.
        name: of a data set on the hub, such as ``roneneldan/TinyStories``, of a local directory, or of a builder for
            ``data_files``: ``text`` (every file is a document, newlines kept), ``json``, ``csv``, ``parquet``.
        config: the data set's configuration (subset).
        split: to train on; slices such as ``train[:10%]`` work.
        val_split: to validate on; None: the last ``val_fraction`` of the characters of ``split``.
        val_fraction: used where ``val_split`` is None or ``path`` is given.
        text_column: name of the column.
        data_files: for a builder: a file, pattern or web address, a list of them, or a mapping from split to them.
            Web addresses are downloaded into ``cache_dir`` once.
        revision: branch, tag or commit on the hub; None: its main one.
        path: local text files, as for `Text`, that take the place of the data set: nothing is loaded or downloaded,
            and the last ``val_fraction`` of the characters validates.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of the order of the data.
        max_eval_tokens: targets to evaluate at most; None: the whole validation split.
        cache_dir: directory of token files, learned tokenizers and downloads; ``datasets`` has its own.
        document_mask, packing, order: see `TokenStream`.

    Raises:
        ConfigError: for a data set, split, column or file that is not there, and where the network would be needed and
            is not there; see also `TokenStream`.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Tokenizer],
        seq_len: int,
        batch_size: int,
        name: str | None = None,
        config: str | None = None,
        split: str = "train",
        val_split: str | None = None,
        val_fraction: float = 0.1,
        text_column: str = "text",
        data_files: str | list[str] | dict[str, Any] | None = None,
        revision: str | None = None,
        path: str | list[str] | None = None,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        cache_dir: str = "~/.cache/lmxexp",
        document_mask: bool = False,
        packing: Packing = "stream",
        order: Order = "random",
    ):
        check_fraction(val_fraction)
        if path is not None:
            corpus = corpus_of_files(path, None, val_fraction)
        elif name is None:
            raise ConfigError("data.name=null names no data set: give one, or a local text file as data.path=FILE")
        else:
            files = _local(data_files, Path(cache_dir).expanduser())
            source = {"name": name, "config": config, "data_files": files, "revision": revision}
            corpus = _corpus(source, split, val_split, val_fraction, text_column)
            corpus.origin["data_files"] = data_files
        super().__init__(
            corpus,
            tokenizer=tokenizer,
            seq_len=seq_len,
            batch_size=batch_size,
            seed=seed,
            max_eval_tokens=max_eval_tokens,
            cache_dir=cache_dir,
            document_mask=document_mask,
            packing=packing,
            order=order,
        )


def _local(data_files: Any, cache_dir: Path) -> Any:
    """``data_files`` with web addresses replaced by what was downloaded from them."""
    if isinstance(data_files, dict):
        return {split: _local(files, cache_dir) for split, files in data_files.items()}
    if isinstance(data_files, list):
        return [_local(file, cache_dir) for file in data_files]
    if isinstance(data_files, str) and is_url(data_files):
        return str(download(data_files, cache_dir))
    return data_files


def _corpus(source: dict[str, Any], split: str, val_split: str | None, val_fraction: float, text_column: str) -> Corpus:
    column, fingerprint = _text_column(source, "data.split", split, text_column)
    origin = {**source, "split": split, "val_split": val_split, "text_column": text_column, "rows": len(column)}
    if val_split is not None:
        val_column, val_fingerprint = _text_column(source, "data.val_split", val_split, text_column)
        return Corpus(
            train=_documents(column),
            validation=_documents(val_column),
            fingerprint=fingerprint_of("hf", text_column, fingerprint, val_fingerprint),
            origin={**origin, "val_rows": len(val_column)},
        )
    train, validation = cut(_documents(column), lambda: _n_chars(column), val_fraction)
    return Corpus(
        train=train,
        validation=validation,
        fingerprint=fingerprint_of("hf", text_column, fingerprint, val_fraction),
        origin=origin,
    )


def _text_column(source: dict[str, Any], key: str, split: str, text_column: str) -> tuple[Any, str]:
    """The Arrow column and the fingerprint that ``datasets`` gives to what it loaded."""
    import pyarrow as pa

    dataset = _load(source, key, split)
    names = dataset.column_names
    if text_column not in names:
        close = difflib.get_close_matches(text_column, names, 1)
        raise ConfigError(
            f"data.text_column={text_column} is not a column of {source['name']}: it has {', '.join(names)}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    # The column as it lies in Arrow: rows through the data set's own indexing take a hundred times longer.
    column = dataset.data.column(text_column)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise ConfigError(
            f"data.text_column={text_column} of {source['name']} holds {column.type}, not text: take another"
        )
    # Private, but what the library's own cache relies on; a hash of gigabytes of text would take seconds a start.
    return column, dataset._fingerprint


def _documents(column: Any) -> Documents:
    def documents() -> Iterator[str]:
        for start in range(0, len(column), _ROWS):
            for text in column.slice(start, _ROWS).to_pylist():
                if text:  # a missing text is None
                    yield text

    return documents


def _n_chars(column: Any) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(pc.utf8_length(column)).as_py() or 0)  # pyright: ignore


def _load(source: dict[str, Any], key: str, split: str) -> Any:
    import datasets

    name = source["name"]
    # The text builder's default makes every line a row and drops its newline.
    options: dict[str, Any] = {"sample_by": "document"} if name == "text" else {}
    try:
        return datasets.load_dataset(
            name,
            source["config"],
            split=split,
            data_files=source["data_files"],
            revision=source["revision"],
            **options,
        )
    except ConnectionError as error:  # the library's offline mode is one as well
        raise ConfigError(
            f"data.name={name} is not in the local cache and could not be downloaded ({_one_line(error)}): check the "
            "network, or give a local text file as data.path=FILE, or take data=python_stdlib, which needs none"
        ) from error
    except FileNotFoundError as error:  # of files, data sets and revisions
        raise ConfigError(
            f"{_describe(source)} cannot be found ({_one_line(error)}): check the name, and the network if it is on "
            "the hub"
        ) from error
    except Exception as error:  # each builder raises its own
        if isinstance(error, ValueError) and "split" in str(error).lower():
            raise ConfigError(f"{key}={split} is not a split of {name}: {_one_line(error)}") from error
        raise ConfigError(
            f"{_describe(source)} cannot be loaded ({_one_line(error.__cause__ or error)}): check that data.name is "
            "the right builder for the files, and data.config one that the data set has"
        ) from error


def _describe(source: dict[str, Any]) -> str:
    return " ".join(f"data.{key}={value}" for key, value in source.items() if value is not None)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
