"""Tasks of tokens that are drawn, not read: what recall, copying and induction share."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from lmxexp.data.corpus import fingerprint_of
from lmxexp.data.sampling import EVAL_SEED, check_sizes, generator, rank_rows
from lmxexp.interfaces import Batch, ConfigError, Tokenizer


class Generated:
    """A source whose examples are drawn by `draw`: a new batch for every index, none of it read or kept.

    The evaluation examples are drawn once, from a seed that no user's can be, and all together: they depend neither on
    the seed nor on the batch size.

    Args:
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        vocab_size: V.
        n_eval: evaluation examples.
        seed: of the training data.
        max_eval_tokens: targets to evaluate at most; None: all.

    Raises:
        ConfigError: sizes below 1; what `settings` refuses.
    """

    task: ClassVar[str]
    """In the fingerprint."""
    reads_tokenizer = False

    def __init__(
        self, *, seq_len: int, batch_size: int, vocab_size: int, n_eval: int, seed: int, max_eval_tokens: int | None
    ):
        check_sizes(seq_len, batch_size, seed, max_eval_tokens)
        if n_eval < 1:
            raise ConfigError(f"data.n_eval={n_eval} must be at least 1 example")
        self.seq_len, self.batch_size, self.vocab_size = seq_len, batch_size, vocab_size
        self.seed, self.n_eval = seed, n_eval
        self.tokenizer: Tokenizer | None = None
        self.eval_bytes: int | None = None
        settings = self.settings()
        self._eval = _cut(self.draw(generator(EVAL_SEED, 0), n_eval), max_eval_tokens)
        n_targets = int(self._eval.weights.sum(dtype=np.int64))
        self.fingerprint = fingerprint_of(self.task, 1, vocab_size, *settings.values(), seq_len, n_eval, n_targets)
        self.record: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "vocab_size": vocab_size,
            **settings,
            "eval_targets": n_targets,
            "eval_bytes": None,
            "tokenizer": "none: the data is generated as tokens",
        }

    def settings(self) -> dict[str, Any]:
        """What the examples depend on beside the sizes, for the fingerprint and the record. Called before `draw`.

        Raises:
            ConfigError: values that cannot work with the sizes.
        """
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, rows: int) -> Batch:
        """Inputs, targets and weights of so many examples, each with at least one target."""
        raise NotImplementedError

    def batch(self, index: int, *, rank: int = 0, world: int = 1) -> Batch:
        mine = rank_rows(self.batch_size, rank, world)
        whole = self.draw(generator(self.seed, index), self.batch_size)
        return Batch(whole.inputs[mine], whole.targets[mine], whole.weights[mine])

    def eval_batches(self) -> Iterator[Batch]:
        inputs, targets, weights = self._eval[:3]
        for start in range(0, len(inputs), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield Batch(*(_filled_up(part[rows], self.batch_size) for part in (inputs, targets, weights)))


def _cut(every: Batch, max_targets: int | None) -> Batch:
    """The first ``max_targets`` targets, and the rows that hold them."""
    if max_targets is None:
        return every
    count = np.cumsum(every.weights, dtype=np.int64).reshape(every.weights.shape)
    weights = every.weights * (count <= max_targets)
    n = int(np.count_nonzero(weights.any(axis=1)))  # every row has a target, so these are the first
    return Batch(every.inputs[:n], every.targets[:n], weights[:n])


def _filled_up(rows: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])
