"""Batches out of a corpus: what all kinds of text data have in common."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmxexp.data.corpus import Corpus, fingerprint_of
from lmxexp.data.sampling import check_sizes, generator, rank_rows
from lmxexp.data.token_file import tokens_of
from lmxexp.interfaces import Batch, ConfigError, Tokenizer
from lmxexp.tokenizer.texts import Texts


class TokenStream:
    """A corpus as two flat arrays of tokens, which documents run through without padding.

    A training batch is ``batch_size`` windows at random places. Evaluation goes over the validation tokens in order,
    in windows that do not overlap: of ``n`` tokens the last ``n - 1`` are targets, each exactly once.

    Args:
        corpus: the text.
        tokenizer: called as ``tokenizer(texts=, fingerprint=, cache_dir=)``.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of the places of the windows.
        max_eval_tokens: only the first so many targets of the validation split are evaluated; None: all.
        cache_dir: directory of token files and learned tokenizers; ``~`` is the home directory.

    Shapes: ``inputs`` and ``targets`` (B, L) int32; in evaluation also ``weights`` (B, L) float32.

    Raises:
        ConfigError: for sizes below 1 and for a split of fewer than ``seq_len + 1`` tokens.

    Source: Karpathy, 2022, nanoGPT, ``get_batch`` in ``train.py``: offsets uniform in ``[0, n - seq_len)``. There they
    come from a global generator and a few random windows are evaluated; here they are a function of (seed, index), and
    the whole split is evaluated.
    """

    divisible = True

    def __init__(
        self,
        corpus: Corpus,
        *,
        tokenizer: Callable[..., Tokenizer],
        seq_len: int,
        batch_size: int,
        seed: int,
        max_eval_tokens: int | None,
        cache_dir: str,
    ):
        check_sizes(seq_len, batch_size, seed, max_eval_tokens)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        cache = Path(cache_dir).expanduser()
        texts = Texts(corpus.train, corpus.validation)
        self.tokenizer: Tokenizer | None = tokenizer(texts=texts, fingerprint=corpus.fingerprint, cache_dir=cache)
        made = self.tokenizer
        assert made is not None
        self.vocab_size = made.vocab_size

        tokenizer_hash = _hash(made)
        names: dict[str, Any] = {"tokenizer_hash": tokenizer_hash, "source": corpus.fingerprint, "cache_dir": cache}
        self._train, train = tokens_of(corpus.train, made, split="train", **names)
        whole, validation = tokens_of(corpus.validation, made, split="validation", check_lossless=True, **names)
        for split, count in (("training", train.count), ("validation", validation.count)):
            if count < seq_len + 1:
                raise ConfigError(
                    f"train.seq_len={seq_len} needs at least {seq_len + 1} tokens in each split, and the {split} split "
                    f"has {count}: give more text, a shorter train.seq_len, or another data.val_fraction"
                )
        n_eval = len(whole) if max_eval_tokens is None else min(len(whole), max_eval_tokens + 1)
        self._eval = whole.slice(0, n_eval)
        self.eval_bytes = _n_bytes(made, self._eval[1:]) if validation.lossless else None
        evaluated = hashlib.sha256(np.ascontiguousarray(self._eval).data).hexdigest()
        self.fingerprint = fingerprint_of(tokenizer_hash, train.sha256, evaluated)
        self.record: dict[str, Any] = {
            **corpus.origin,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "train_tokens": train.count,
            "train_bytes": train.bytes,
            "train_documents": len(self._train.starts),
            "validation_tokens": validation.count,
            "validation_bytes": validation.bytes,
            "validation_documents": len(whole.starts),
            "eval_targets": len(self._eval) - 1,
            "eval_bytes": self.eval_bytes,
        }

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        offsets = generator(self.seed, index).integers(0, len(self._train) - self.seq_len, size=self.batch_size)
        mine = offsets[rank_rows(self.batch_size, rank, world)]
        windows = self._train.windows(mine, self.seq_len + 1)
        return Batch(windows[:, :-1].copy(), windows[:, 1:].copy())

    def eval_batches(self) -> Iterator[Batch]:
        per_batch = self.batch_size * self.seq_len
        n_targets = len(self._eval) - 1
        for start in range(0, n_targets, per_batch):
            n = min(per_batch, n_targets - start)
            inputs, targets = np.zeros((2, per_batch), np.int32)
            inputs[:n] = self._eval[start : start + n]
            targets[:n] = self._eval[start + 1 : start + 1 + n]
            weights = (np.arange(per_batch) < n).astype(np.float32)
            yield Batch(*(a.reshape(self.batch_size, self.seq_len) for a in (inputs, targets, weights)))


def _hash(tokenizer: Tokenizer) -> str:
    """Of what the tokenizer saves: all there is to know about it."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "tokenizer.json"
        tokenizer.save(file)
        return hashlib.sha256(file.read_bytes()).hexdigest()


def _n_bytes(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    # A tokenizer from outside may have no n_bytes. What it decodes to is then exact, but for a character cut in two.
    n_bytes = getattr(tokenizer, "n_bytes", None)
    return len(tokenizer.decode(ids.tolist()).encode("utf-8")) if n_bytes is None else n_bytes(ids)
