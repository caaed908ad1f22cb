"""Induction: generated sequences in which each token that comes again asks what followed it the last time."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmxexp.data.generated import Generated
from lmxexp.interfaces import Batch, ConfigError, Tokenizer


class Induction(Generated):
    """Random tokens; wherever a token has occurred before, the target is what followed it the last time it did.

    With x the sequence and p < t the last position before t where x[p] = x[t], the target at t is x[p + 1]. (For
    p + 1 = t that is the token itself.) Positions whose token is new do not count. Tokens are drawn independently of
    each other, with replacement from the whole vocabulary, so nothing but the sequence tells the answer, and what
    followed a token may be something else each time: what was true before has to be replaced.

    Batches are made when asked for, a new one for every index. The evaluation examples do not depend on the seed.

    Args:
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        vocab_size: V, below ``seq_len``: every sequence repeats a token. What followed a token the last time stands V
            positions back on average.
        n_eval: evaluation examples.
        seed: of the training data.
        max_eval_tokens: targets to evaluate at most; None: all.
        tokenizer: offered to every source; there is no text here, so it is never called.

    Shapes: ``inputs``, ``targets`` (B, L) int32; ``weights`` (B, L) float32, 1 where the token has occurred before and
        0 elsewhere, in training as well. Targets of weight 0 are 0.

    Raises:
        ConfigError: a vocabulary below two tokens, or that ``seq_len`` does not exceed; other sizes below 1.

    Source: Olsson et al. 2022, "In-context Learning and Induction Heads", definition ([A][B] … [A] to [B], random
    tokens). Gu & Dao 2023, "Mamba", section 4.1.2, ask once in a sequence, behind a token of its own; here every token
    that comes again asks.
    """

    task = "induction"

    def __init__(
        self,
        seq_len: int,
        batch_size: int,
        vocab_size: int = 32,
        n_eval: int = 500,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        tokenizer: Callable[..., Tokenizer] | None = None,
    ):
        del tokenizer
        super().__init__(
            seq_len=seq_len,
            batch_size=batch_size,
            vocab_size=vocab_size,
            n_eval=n_eval,
            seed=seed,
            max_eval_tokens=max_eval_tokens,
        )

    def settings(self) -> dict[str, Any]:
        seq_len, vocab_size = self.seq_len, self.vocab_size
        if vocab_size < 2:
            raise ConfigError(f"data.vocab_size={vocab_size} must be at least 2 tokens")
        if vocab_size >= seq_len:
            fewer = f" or data.vocab_size={seq_len - 1} or less" if seq_len > 2 else ""
            raise ConfigError(
                f"data.vocab_size={vocab_size} must be below train.seq_len={seq_len}, or a sequence may repeat no "
                f"token: take train.seq_len={vocab_size + 1} or more{fewer}"
            )
        return {}

    def draw(self, rng: np.random.Generator, rows: int) -> Batch:
        inputs = rng.integers(0, self.vocab_size, size=(rows, self.seq_len), dtype=np.int32)
        # Positions in order of their tokens, equal tokens in order of time: one's last occurrence is the one before it.
        order = np.argsort(inputs, axis=1, kind="stable")
        in_order = np.take_along_axis(inputs, order, axis=1)
        again = in_order[:, 1:] == in_order[:, :-1]
        followed = np.take_along_axis(inputs, np.minimum(order[:, :-1] + 1, self.seq_len - 1), axis=1)
        targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
        np.put_along_axis(targets, order[:, 1:], np.where(again, followed, 0), axis=1)
        np.put_along_axis(weights, order[:, 1:], again.astype(np.float32), axis=1)
        return Batch(inputs, targets, weights)
