"""One or many local text files."""

from collections.abc import Callable

from lmxexp.data.text_files import corpus_of_files
from lmxexp.data.token_stream import Order, Packing, TokenStream
from lmxexp.interfaces import Tokenizer


class Text(TokenStream):
    """The files one after the other, as one document.

    The text is read in pieces when it is encoded, the first time; after that the tokens are read from the cache. A
    tokenizer that does not take a document in pieces (``encodes_pieces``) gets all of it at once.

    Args:
        tokenizer: factory of the tokenizer.
        path: a UTF-8 text file, which may be compressed (gz, bz2, xz, zst), a pattern such as ``books/**/*.txt``, or a
            list of either.
        val_path: the same of the text to validate on; None: the end of ``path``.
        val_fraction: the share of the characters, from the end, that validates if ``val_path`` is None; nanoGPT's
            ``int(n * 0.9)`` for 0.1.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of the order of the data.
        max_eval_tokens: targets to evaluate at most; None: the whole validation split.
        cache_dir: directory of token files and learned tokenizers.
        document_mask, packing, order: see `TokenStream`.

    Raises:
        ConfigError: see `corpus_of_files` and `TokenStream`.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Tokenizer],
        path: str | list[str],
        seq_len: int,
        batch_size: int,
        val_path: str | list[str] | None = None,
        val_fraction: float = 0.1,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        cache_dir: str = "~/.cache/lmxexp",
        document_mask: bool = False,
        packing: Packing = "stream",
        order: Order = "random",
    ):
        super().__init__(
            corpus_of_files(path, val_path, val_fraction),
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
