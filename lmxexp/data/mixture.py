"""Several sources of text, mixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from lmxexp.data.corpus import fingerprint_of
from lmxexp.data.sampling import check_sizes, rank_rows
from lmxexp.data.shares import Shares
from lmxexp.data.token_stream import TokenStream
from lmxexp.interfaces import Batch, ConfigError, Tokenizer
from lmxexp.tokenizer.texts import Texts

_TAKEN = ("loss", "ppl", "accuracy", "bpb", "ema", "lawa")
"""What stands after ``eval/`` already."""


_SUMMED = (
    *(f"{split}_{what}" for split in ("train", "validation") for what in ("tokens", "bytes", "documents")),
    "eval_targets",
    "eval_bytes",
)
"""Of the records of sources."""


class Mixture:
    """Rows of several sources in every batch, in proportion to their weights.

    Each source goes its own way, in its own order: the mixture says whose row is next (`lmxexp.data.shares.Shares`),
    which is the same for every seed. One tokenizer serves them all; one that learns does so from the text of all.

    Evaluation goes over the validation splits of all sources, one after the other, and ``eval/loss`` is the mean over
    all their targets, whatever the weights; ``eval/<name>/loss`` is a source's own.

    Args:
        tokenizer: factory of the tokenizer.
        sources: by name, factories of sources of text, such as `lmxexp.data.text.Text`.
        weights: of each source, from the first batch on; only their ratios count. None: by their training tokens.
        curriculum: further weights: a list of ``{batch: N, weights: {…}}``, in order, each reached at batch number N.
        change: how they are reached: ``linear`` from those before, or ``stages``, all at once.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of all the sources, which makes each one's own of it and of its name; their own are not read.

    Shapes: as of the sources; ``weights`` wherever one of them has some.

    Raises:
        ConfigError: no sources, or such as are no text or not alike in ``document_mask``; weights that are none.
    """

    divisible = True

    def __init__(
        self,
        tokenizer: Callable[..., Tokenizer],
        sources: dict[str, Any],
        seq_len: int,
        batch_size: int,
        weights: dict[str, float] | None = None,
        curriculum: list[dict[str, Any]] | None = None,
        change: Literal["linear", "stages"] = "linear",
        seed: int = 0,
    ):
        check_sizes(seq_len, batch_size, seed, None)
        _check_sources(sources)
        self.batch_size, self.seq_len = batch_size, seq_len
        asked = {name: _asked_of(name, factory) for name, factory in sources.items()}
        fingerprints = {name: what.fingerprint for name, what in asked.items()}
        self.tokenizer: Tokenizer | None = tokenizer(
            texts=Texts(
                *(_in_a_row([getattr(a.texts, split) for a in asked.values()]) for split in ("train", "validation"))
            ),
            fingerprint=fingerprint_of("mixture", sorted(fingerprints.items())),
            cache_dir=next(iter(asked.values())).cache_dir,
        )
        made = self.tokenizer
        assert made is not None
        self.vocab_size = made.vocab_size
        self.sources: dict[str, TokenStream] = {
            name: _made(name, partial(factory, seed=_own_seed(seed, name)), tokenizer=lambda **_: made)
            for name, factory in sources.items()
        }
        self._check_alike()
        first = next(iter(self.sources.values()))
        self.document_mask = first.document_mask
        if weights is None:
            weights = {name: float(source.record["train_tokens"]) for name, source in self.sources.items()}
        self.shares = self._shares(weights, curriculum or [], change)

        of_sources = {name: source.record for name, source in self.sources.items()}
        sums = {key: _sum(record[key] for record in of_sources.values()) for key in _SUMMED}
        self.eval_bytes = sums["eval_bytes"]
        self.fingerprint = fingerprint_of("mixture", sorted((n, s.fingerprint) for n, s in self.sources.items()))
        self.record: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            **sums,
            **({"document_mask": True} if self.document_mask else {}),
            "weights": dict(zip(self.sources, self.shares.weights_at(0).tolist(), strict=True)),
            "sources": of_sources,
        }

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        source, number = self.shares.rows(index * self.batch_size, self.batch_size)
        mine = rank_rows(self.batch_size, rank, world)
        source, number = source[mine], number[mine]
        shape = (len(source), self.seq_len)
        whole: dict[str, np.ndarray] = {"inputs": np.empty(shape, np.int32), "targets": np.empty(shape, np.int32)}
        for k, own in enumerate(self.sources.values()):
            here = np.flatnonzero(source == k)
            if not len(here):
                continue
            for name, values in own.rows(number[here])._asdict().items():
                if values is not None:
                    if name not in whole:  # weights: those of sources that have none are 1
                        whole[name] = np.ones(shape, values.dtype)
                    whole[name][here] = values
        if self._weighted and "weights" not in whole:
            whole["weights"] = np.ones(shape, np.float32)
        return Batch(**whole)

    def eval_batches(self) -> Iterator[Batch]:
        for source in self.sources.values():
            yield from source.eval_batches()

    def seen(self, tokens: int) -> dict[str, float]:
        """``<name>/tokens``, which is with padding, and ``<name>/epochs`` of each source in the first ``tokens``."""
        found: dict[str, float] = {}
        for (name, source), rows in zip(self.sources.items(), self.shares.counts(tokens // self.seq_len), strict=True):
            found |= {f"{name}/tokens": float(rows * self.seq_len), f"{name}/epochs": rows / source.epoch.per_epoch}
        return found

    def _check_alike(self) -> None:
        for key, wanted in (("seq_len", self.seq_len), ("batch_size", self.batch_size)):
            for name, source in self.sources.items():
                if getattr(source, key) != wanted:
                    raise ConfigError(
                        f"data.sources.{name}.{key}={getattr(source, key)} differs from the mixture's, which is "
                        f"{wanted}: leave it to follow train.{key}"
                    )
        if len({source.document_mask for source in self.sources.values()}) > 1:
            each = ", ".join(f"{name}: {str(s.document_mask).lower()}" for name, s in self.sources.items())
            raise ConfigError(
                f"data.sources.*.document_mask differs ({each}): it must be the same for all of a mixture"
            )
        # Batches are of one structure, whichever sources have a row in them.
        self._weighted = any(source.weighted for source in self.sources.values())

    def _shares(self, weights: Mapping[str, float], curriculum: list[dict[str, Any]], change: str) -> Shares:
        if change != "linear" and not curriculum:
            raise ConfigError(f"data.change={change} would be ignored: data.curriculum has no weights to change to")
        begins, rows = [0], [self._row("data.weights", weights)]
        for i, point in enumerate(curriculum):
            key = f"data.curriculum.{i}"
            if set(point) != {"batch", "weights"} or not isinstance(point["batch"], int):
                raise ConfigError(f"{key}={point}: expected {{batch: N, weights: {{…}}}}")
            if point["batch"] * self.batch_size <= begins[-1]:
                raise ConfigError(f"{key}.batch={point['batch']} must come after {begins[-1] // self.batch_size}")
            begins.append(point["batch"] * self.batch_size)
            rows.append(self._row(f"{key}.weights", point["weights"]))
        return Shares(begins, np.array(rows, np.float64), linear=change == "linear")

    def _row(self, key: str, weights: Mapping[str, float]) -> list[float]:
        if set(weights) != set(self.sources):
            raise ConfigError(f"{key}={dict(weights)} must name the sources {', '.join(self.sources)}, each once")
        if any(not 0 <= w < float("inf") for w in weights.values()) or not sum(weights.values()) > 0:
            raise ConfigError(f"{key}={dict(weights)} must not be negative, and some must be positive")
        return [float(weights[name]) for name in self.sources]


class _Asked(Exception):
    """What a source would have a tokenizer learn from."""

    def __init__(self, texts: Texts, fingerprint: str, cache_dir: Path):
        self.texts, self.fingerprint, self.cache_dir = texts, fingerprint, cache_dir


def _asked_of(name: str, factory: Callable[..., Any]) -> _Asked:
    """Sources make their tokenizer when they are made themselves. Here one is needed for all of them before any is, so
    each is asked first what it would give it, and gets no further."""

    def ask(*, texts: Texts, fingerprint: str, cache_dir: Path) -> NoReturn:
        raise _Asked(texts, fingerprint, cache_dir)

    try:
        _made(name, factory, tokenizer=ask)
    except _Asked as asked:
        return asked
    raise ConfigError(f"data.sources.{name} is no text: a mixture is of sources that a tokenizer makes tokens of")


def _made(name: str, factory: Callable[..., Any], **arguments: Any) -> Any:
    try:
        return factory(**arguments)
    except ConfigError as error:
        raise ConfigError(f"data.sources.{name}: {error}") from error


def _check_sources(sources: Mapping[str, Any]) -> None:
    if not sources:
        raise ConfigError(
            "data.sources is empty: a mixture is of two or more, such as "
            "+data@data.sources.code=python_stdlib +data@data.sources.prose=text data.sources.prose.path=FILE"
        )
    for name, factory in sources.items():
        if not callable(factory):
            raise ConfigError(f"data.sources.{name} is no source: choose one by +data@data.sources.{name}=KIND")
        if not name.isidentifier() or name in _TAKEN:
            raise ConfigError(f"data.sources.{name}: a source's name is part of its metrics'; take another word")
    seeds = {name: factory.keywords.get("seed") for name, factory in sources.items() if isinstance(factory, partial)}
    if len(set(seeds.values())) > 1:
        each = ", ".join(f"data.sources.{name}.seed={seed}" for name, seed in seeds.items())
        raise ConfigError(f"{each} would be ignored: set data.seed, which is that of all sources")


def _own_seed(seed: int, name: str) -> int:
    return int(fingerprint_of("seed", seed, name)[:15], 16)


def _in_a_row(splits: list[Callable[[], Iterable[str]]]) -> Callable[[], Iterator[str]]:
    return lambda: (document for split in splits for document in split())


def _sum(numbers: Iterable[int | None]) -> int | None:
    found = list(numbers)
    return None if None in found else sum(n for n in found if n is not None)
