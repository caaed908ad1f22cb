"""Byte-level byte-pair encoding, learned from the training text on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmxexp.data.cache import warn_unwritable, write_atomically
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.subword import SubwordTokenizer

if TYPE_CHECKING:
    import tokenizers

EOS = "<|endoftext|>"


class BpeTokenizer(SubwordTokenizer):
    """Starts from the 256 bytes and joins the most frequent pair of neighbours again and again.

    The text is first cut into words by GPT-2's pattern, and no token crosses a cut. What was learned is kept in
    ``cache_dir`` under a hash of the text's fingerprint and of the settings.

    Args:
        texts: gives the training text.
        fingerprint: names the text; empty: nothing is cached.
        cache_dir: where the learned tokenizer is kept; None: nowhere.
        vocab_size: tokens at most, the 256 bytes and the end-of-text token included; fewer if the text is too small
            to have that many different pairs.
        max_chars: characters of the training text that are learned from, from its beginning.

    Raises:
        ConfigError: for a ``vocab_size`` below 257 or a ``max_chars`` below 1.

    Source: Sennrich, Haddow, Birch, 2016, "Neural Machine Translation of Rare Words with Subword Units"; on bytes:
    Radford et al., 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """

    def __init__(
        self,
        texts: Callable[[], Iterator[str]],
        fingerprint: str = "",
        cache_dir: Path | None = None,
        vocab_size: int = 4096,
        max_chars: int = 100_000_000,
    ):
        if vocab_size < 257:
            raise ConfigError(
                f"tokenizer.vocab_size={vocab_size} is below 257: the 256 bytes and the end-of-text token come first"
            )
        if max_chars < 1:
            raise ConfigError(f"tokenizer.max_chars={max_chars} must be at least 1: nothing could be learned")
        super().__init__(_learned_or_cached(texts, fingerprint, cache_dir, vocab_size, max_chars), EOS)


def _learned_or_cached(
    texts: Callable[[], Iterator[str]], fingerprint: str, cache_dir: Path | None, vocab_size: int, max_chars: int
) -> tokenizers.Tokenizer:
    if cache_dir is None or not fingerprint:
        return _learn(texts(), vocab_size, max_chars)
    import tokenizers

    # The library's version is part of the name: another may learn other pairs.
    settings = json.dumps([fingerprint, vocab_size, max_chars, EOS, tokenizers.__version__])
    file = Path(cache_dir) / "tokenizers" / f"bpe-{hashlib.sha256(settings.encode()).hexdigest()[:24]}.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception:  # the library raises nothing narrower; a damaged file is learned anew
            pass
    tokenizer = _learn(texts(), vocab_size, max_chars)
    try:
        write_atomically(file, lambda out: out.write(tokenizer.to_str().encode("utf-8")))
    except OSError as error:
        warn_unwritable(Path(cache_dir), error)
    return tokenizer


def _learn(texts: Iterator[str], vocab_size: int, max_chars: int) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_chars(texts, max_chars), trainer)
    return tokenizer


def _first_chars(texts: Iterator[str], n: int) -> Iterator[str]:
    for text in texts:
        yield text[:n]
        n -= len(text)
        if n <= 0:
            return
