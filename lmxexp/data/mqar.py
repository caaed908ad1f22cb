"""Multi-query associative recall: generated sequences that ask for values by their keys."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmxexp.data.generated import Generated
from lmxexp.interfaces import Batch, ConfigError, Tokenizer


class Mqar(Generated):
    """A sequence lists ``n_pairs`` keys, each followed by its value, and later shows every key again.

    Where a key is shown again its value is the target, and nothing else counts. The first half of the vocabulary are
    keys, the second half values; within a sequence no key and no value is used twice. After the pairs there is a place
    for a query every two positions, and the queries take places drawn one after the other, without replacement, with
    probability proportional to ``i ** (power_a - 1)`` for the place number ``i = 1, 2, …``: most queries come soon, a
    few late. What remains is filled with random tokens of the whole vocabulary.

    Batches are made when asked for, a new one for every index. The evaluation examples do not depend on the seed.

    Args:
        seq_len: L, tokens in one sequence; at least ``4 * n_pairs``.
        batch_size: B, sequences in one global batch.
        vocab_size: V, an even number.
        n_pairs: key-value pairs in a sequence, and queries.
        power_a: exponent of the power law plus one; 1 is uniform.
        n_eval: evaluation examples.
        seed: of the training data.
        max_eval_tokens: query targets to evaluate at most; None: all ``n_eval * n_pairs``.
        tokenizer: offered to every source; there is no text here, so it is never called, `Mqar.tokenizer` is None,
            and the run's record says so.

    Shapes: ``inputs``, ``targets`` (B, L) int32; ``weights`` (B, L) float32, 1 at the queries and 0 elsewhere, in
        training as well. Targets of weight 0 are 0.

    Raises:
        ConfigError: for a ``seq_len`` too short for ``n_pairs``, a vocabulary that is odd or too small, other sizes
            below 1.

    Source: Arora, Eyuboglu, Timalsina, Johnson, Poli, Zou, Rudra, Ré, 2023, "Zoology: Measuring and Improving Recall in
    Efficient Language Models", section 4 and appendix (the synthetic task). There 100,000 training examples are made
    once and repeated; here none is, and token 0, which is left free there, is a key like the others.
    """

    task = "mqar"

    def __init__(
        self,
        seq_len: int,
        batch_size: int,
        vocab_size: int = 8192,
        n_pairs: int = 8,
        power_a: float = 0.01,
        n_eval: int = 1000,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        tokenizer: Callable[..., Tokenizer] | None = None,
    ):
        del tokenizer
        self.n_pairs, self.power_a = n_pairs, power_a
        super().__init__(
            seq_len=seq_len,
            batch_size=batch_size,
            vocab_size=vocab_size,
            n_eval=n_eval,
            seed=seed,
            max_eval_tokens=max_eval_tokens,
        )

    def settings(self) -> dict[str, Any]:
        n_pairs, seq_len, vocab_size = self.n_pairs, self.seq_len, self.vocab_size
        if n_pairs < 1:
            raise ConfigError(f"data.n_pairs={n_pairs} must be at least 1")
        if seq_len < 4 * n_pairs:
            fewer = f" or data.n_pairs={seq_len // 4}" if seq_len >= 4 else ""
            raise ConfigError(
                f"train.seq_len={seq_len} is too short for data.n_pairs={n_pairs}: pairs and queries take "
                f"{4 * n_pairs} tokens; take train.seq_len={4 * n_pairs}{fewer}"
            )
        if vocab_size % 2 or vocab_size < 2 * n_pairs:
            raise ConfigError(
                f"data.vocab_size={vocab_size} must be even and at least {2 * n_pairs}, for data.n_pairs={n_pairs} "
                "different keys in its first half and as many values in its second"
            )
        return {"n_pairs": n_pairs, "power_a": self.power_a}

    def draw(self, rng: np.random.Generator, rows: int) -> Batch:
        half, n_context = self.vocab_size // 2, 2 * self.n_pairs
        keys = _distinct(rng, rows, self.n_pairs, half)
        values = half + _distinct(rng, rows, self.n_pairs, self.vocab_size - half)
        inputs = rng.integers(0, self.vocab_size, size=(rows, self.seq_len), dtype=np.int32)
        inputs[:, 0:n_context:2] = keys
        inputs[:, 1:n_context:2] = values
        at = n_context + 2 * self._places(rng, rows)
        np.put_along_axis(inputs, at, keys, axis=1)
        targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
        np.put_along_axis(targets, at, values, axis=1)
        np.put_along_axis(weights, at, 1.0, axis=1)
        return Batch(inputs, targets, weights)

    def _places(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        """The place of each pair's query, from 0; ``(rows, n_pairs)``, no two alike in a row."""
        n_places = (self.seq_len - 2 * self.n_pairs) // 2
        log_p = (self.power_a - 1) * np.log(np.arange(1, n_places + 1))
        # Sorting log-probabilities with Gumbel noise is drawing without replacement, one after the other
        # (Vieira, 2014, "Gumbel-max trick and weighted reservoir sampling"), for all rows at once.
        noisy = log_p + rng.gumbel(size=(rows, n_places))
        return np.argsort(-noisy, axis=1)[:, : self.n_pairs]


def _distinct(rng: np.random.Generator, rows: int, n: int, high: int) -> np.ndarray:
    """``(rows, n)`` int32 from ``[0, high)``, uniform, no two alike in a row.

    What repeats an earlier number of its row is drawn again. Which numbers are drawn again depends on equality alone,
    so every set of different numbers is as likely as every other.
    """
    drawn = rng.integers(0, high, size=(rows, n), dtype=np.int32)
    while True:
        order = np.argsort(drawn, axis=1, kind="stable")
        in_order = np.take_along_axis(drawn, order, axis=1)
        repeats = np.zeros(drawn.shape, bool)
        np.put_along_axis(repeats, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
        if not repeats.any():
            return drawn
        drawn[repeats] = rng.integers(0, high, size=int(repeats.sum()), dtype=np.int32)
