"""Batches out of a corpus: what all kinds of text data have in common."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lmxexp.data.corpus import Corpus, fingerprint_of
from lmxexp.data.packing import packed
from lmxexp.data.permutation import shuffled
from lmxexp.data.rows import Packed, Rows, Windows, segments
from lmxexp.data.sampling import check_sizes, generator, rank_rows
from lmxexp.data.token_file import tokens_of
from lmxexp.data.tokens import Tokens
from lmxexp.interfaces import Batch, ConfigError, Tokenizer
from lmxexp.tokenizer.texts import Texts

Packing = Literal["stream", "best_fit"]
Order = Literal["random", "shuffle"]


class TokenStream:
    """A corpus as two flat rows of tokens, which batches are cut out of.

    A training batch is ``batch_size`` windows at random places, which documents run through without padding, unless
    ``packing`` and ``order`` say otherwise. Evaluation goes over the validation tokens in order, in windows that do not
    overlap: of ``n`` tokens the last ``n - 1`` are targets, each exactly once.

    Args:
        corpus: the text.
        tokenizer: called as ``tokenizer(texts=, fingerprint=, cache_dir=)``.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of the places of the windows.
        max_eval_tokens: only the first so many targets of the validation split are evaluated; None: all.
        cache_dir: directory of token files and learned tokenizers; ``~`` is the home directory.
        document_mask: batches have ``segment_ids``, in training and evaluation: positions see their own document alone.
            The first token of a document is no target then, see `lmxexp.data.rows.segments`.
        packing: of training: ``stream``, windows of the text as it stands; ``best_fit``, rows of whole documents, see
            `lmxexp.data.packing.packed`.
        order: of training: ``random``, each row drawn from all that there are; ``shuffle``, each once an epoch, see
            `lmxexp.data.permutation.shuffled`.

    Shapes: ``inputs`` and ``targets`` (B, L) int32; in evaluation, and with ``document_mask`` or ``best_fit``, also
        ``weights`` (B, L) float32; with ``document_mask`` ``segment_ids`` (B, L) int32.

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
        document_mask: bool = False,
        packing: Packing = "stream",
        order: Order = "random",
    ):
        check_sizes(seq_len, batch_size, seed, max_eval_tokens)
        self.seq_len, self.batch_size, self.seed = seq_len, batch_size, seed
        self.document_mask, self.order = document_mask, order
        self.weighted = document_mask or packing == "best_fit"
        """Whether training batches have weights."""
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
        self._eval, self._eval_starts, self._eval_targets = _evaluated(whole, max_eval_tokens, document_mask)
        self.eval_bytes = None
        if validation.lossless:
            of_targets = np.delete(self._eval, self._eval_starts) if document_mask else self._eval[1:]
            self.eval_bytes = _n_bytes(made, of_targets)
        evaluated = hashlib.sha256(np.ascontiguousarray(self._eval).data).hexdigest()
        masked = ["document_mask"] if document_mask else []  # other targets, from other contexts
        self.fingerprint = fingerprint_of(tokenizer_hash, train.sha256, evaluated, *masked)
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
            "eval_targets": self._eval_targets,
            "eval_bytes": self.eval_bytes,
            **({"document_mask": True} if document_mask else {}),
        }
        if packing == "stream":
            self.epoch: Rows = Windows(self._train, seq_len, document_mask)
        else:
            plan = packed(self._train, seq_len + 1)
            self.epoch = Packed(self._train, plan, document_mask)
            self.record["packing"] = {"rows": plan.rows, "efficiency": plan.efficiency, "cut_documents": plan.cut}

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        return self.rows(index * self.batch_size + np.arange(self.batch_size)[rank_rows(self.batch_size, rank, world)])

    def rows(self, places: np.ndarray) -> Batch:
        """Any rows of the training batches, of which all are counted on: ``index * batch_size`` is the first of batch
        number ``index``."""
        epoch, place = np.divmod(places, self.epoch.per_epoch if self.order == "shuffle" else self.batch_size)
        if self.order == "shuffle":
            return self.epoch.batch(
                self.epoch.nth(shuffled(place, self.epoch.per_epoch, self.seed, epoch), epoch, self.seed)
            )
        numbers = np.empty(len(places), np.int64)
        for index in np.unique(epoch).tolist():
            here = epoch == index
            numbers[here] = generator(self.seed, index).integers(0, self.epoch.choices, size=self.batch_size)[
                place[here]
            ]
        return self.epoch.batch(numbers)

    def eval_batches(self) -> Iterator[Batch]:
        per_batch = self.batch_size * self.seq_len
        n_targets = len(self._eval) - 1
        for start in range(0, n_targets, per_batch):
            n = min(per_batch, n_targets - start)
            inputs, targets = np.zeros((2, per_batch), np.int32)
            inputs[:n] = self._eval[start : start + n]
            targets[:n] = self._eval[start + 1 : start + 1 + n]
            arrays = [inputs, targets, (np.arange(per_batch) < n).astype(np.float32)]
            if self.document_mask:
                begins = np.zeros((1, per_batch + 1), np.int32)
                first, end = np.searchsorted(self._eval_starts, [start, start + n + 1])
                begins[0, self._eval_starts[first:end] - start] = 1
                weights, segment_ids = segments(begins)
                arrays[2] *= weights[0]
                arrays.append(segment_ids[0])
            yield Batch(*(a.reshape(self.batch_size, self.seq_len) for a in arrays))


def _evaluated(tokens: Tokens, max_targets: int | None, document_mask: bool) -> tuple[np.ndarray, np.ndarray, int]:
    """The tokens up to the last one that is evaluated, where documents start in them, and how many of them are targets:
    all but the first, or with ``document_mask`` all but each document's first."""
    if max_targets is None:
        n = len(tokens)
    elif not document_mask:
        n = min(len(tokens), max_targets + 1)
    else:  # the least n with n - #(starts below n) >= max_targets; the first document starts at 0
        targets_before = tokens.starts - np.arange(len(tokens.starts))  # those before each start
        n = min(len(tokens), max_targets + int(np.searchsorted(targets_before, max_targets, "left")))
    starts = tokens.starts[: np.searchsorted(tokens.starts, n)]
    return tokens.slice(0, n), starts, n - (len(starts) if document_mask else 1)


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
