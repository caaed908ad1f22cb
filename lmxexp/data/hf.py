"""Any text data set that the ``datasets`` library loads, from the hub or from local files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmxexp.data.corpus import check_fraction
from lmxexp.data.download import download, is_url
from lmxexp.data.hf_corpus import Selection, loaded_corpus
from lmxexp.data.hf_streamed import streamed_corpus
from lmxexp.data.text_files import corpus_of_files
from lmxexp.data.token_stream import Order, Packing, TokenStream
from lmxexp.interfaces import ConfigError, Tokenizer


class HuggingFace(TokenStream):
    """Every row of one text column is a document.

    Args:
        tokenizer: factory of the tokenizer.
        name: of a data set on the hub, such as ``roneneldan/TinyStories``, of a local directory, or of a builder for
            ``data_files``: ``text`` (every file is a document, newlines kept), ``json``, ``csv``, ``parquet``,
            ``arrow``. All but the last two may be compressed.
        config: the data set's configuration (subset).
        split: to train on; slices such as ``train[:10%]`` work.
        val_split: to validate on; None: a part of ``split``.
        val_documents: the first so many rows of ``split`` validate, and the others train; None: the last
            ``val_fraction`` of the characters do, through the document where they begin.
        val_fraction: used where neither ``val_split`` nor ``val_documents`` is given, and with ``path``.
        max_documents: only the first so many rows of ``split`` are read; None: all.
        streaming: read rows on the way to the tokens, and keep no copy. Otherwise ``datasets`` downloads the whole and
            keeps an Arrow copy, from which other tokenizers' tokens are made without the network.
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
        val_documents: int | None = None,
        val_fraction: float = 0.1,
        max_documents: int | None = None,
        streaming: bool = False,
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
            selection = Selection(split, val_split, val_documents, val_fraction, max_documents, text_column)
            if streaming:
                corpus = streamed_corpus(source, selection, Path(cache_dir).expanduser())
            else:
                corpus = loaded_corpus(source, selection)
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
