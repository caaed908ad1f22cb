"""String copying: generated sequences that have to be said again."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lmxexp.data.generated import Generated
from lmxexp.interfaces import Batch, ConfigError, Tokenizer


class Copying(Generated):
    """A random string, a separator, and the string again: only the second string counts.

    With a string s of n tokens, positions 0 … n - 1 show s, position n the separator, and positions n + 1 … 2n - 1 show
    s again without its last token. The target at position n + i is s[i], for i = 0 … n - 1. So the separator asks for
    the first token, and each token of the second string for the one after it. What remains of the sequence is filled
    with separators.

    The length n is drawn for every sequence anew: that the answer stands a fixed distance back is no solution. Tokens
    are drawn with replacement from all but the last of the vocabulary, which is the separator; so a token does not tell
    by itself what follows it, and a model has to know where it is.

    Batches are made when asked for, a new one for every index. The evaluation examples do not depend on the seed. There
    are few strings of one or two tokens, so that training meets those of the evaluation too; ``shortest`` leaves them
    out.

    Args:
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        vocab_size: V, the separator included.
        shortest: tokens of the shortest string.
        longest: tokens of the longest string, at most ``seq_len / 2``; None: that.
        n_eval: evaluation examples.
        seed: of the training data.
        max_eval_tokens: targets to evaluate at most; None: all.
        tokenizer: offered to every source; there is no text here, so it is never called.

    Shapes: ``inputs``, ``targets`` (B, L) int32; ``weights`` (B, L) float32, 1 at the n targets and 0 elsewhere, in
        training as well. Targets of weight 0 are 0.

    Raises:
        ConfigError: strings that do not fit into ``seq_len`` twice, or whose range is empty; a vocabulary of less than
            two tokens and a separator; other sizes below 1.

    Source: Jelassi, Brandfonbrener, Kakade, Malach, 2024, "Repeat After Me: Transformers are Better than State Space
    Models at Copying", section 4.1 (uniform strings of varying length). There several examples are packed into one
    sequence of training; here each has its own.
    """

    task = "copying"

    def __init__(
        self,
        seq_len: int,
        batch_size: int,
        vocab_size: int = 32,
        shortest: int = 1,
        longest: int | None = None,
        n_eval: int = 500,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        tokenizer: Callable[..., Tokenizer] | None = None,
    ):
        del tokenizer
        self.shortest, self.longest = shortest, seq_len // 2 if longest is None else longest
        super().__init__(
            seq_len=seq_len,
            batch_size=batch_size,
            vocab_size=vocab_size,
            n_eval=n_eval,
            seed=seed,
            max_eval_tokens=max_eval_tokens,
        )

    def settings(self) -> dict[str, Any]:
        shortest, longest, seq_len = self.shortest, self.longest, self.seq_len
        if seq_len < 2:
            raise ConfigError(
                f"train.seq_len={seq_len} has no room for a string and its copy: take train.seq_len=2 or more"
            )
        if self.vocab_size < 3:
            raise ConfigError(f"data.vocab_size={self.vocab_size} must be at least 3: two tokens and the separator")
        if 2 * longest > seq_len:
            raise ConfigError(
                f"data.longest={longest} does not fit twice into train.seq_len={seq_len}: "
                f"take data.longest={seq_len // 2} or train.seq_len={2 * longest}"
            )
        if longest < 1:
            raise ConfigError(f"data.longest={longest} must be at least 1 token")
        if not 1 <= shortest <= longest:
            raise ConfigError(
                f"data.shortest={shortest} must be at least 1 and at most {longest} (data.longest; null is half of "
                "train.seq_len)"
            )
        return {"shortest": shortest, "longest": longest}

    def draw(self, rng: np.random.Generator, rows: int) -> Batch:
        separator = self.vocab_size - 1
        length = rng.integers(self.shortest, self.longest, size=(rows, 1), endpoint=True)
        string = rng.integers(0, separator, size=(rows, self.seq_len), dtype=np.int32)
        position = np.arange(self.seq_len)
        # In the second string: position n + i asks for s[i], and shows s[i - 1] or, at i = 0, the separator.
        i = position - length
        again = np.take_along_axis(string, np.clip(i, 0, None), axis=1)
        before = np.take_along_axis(string, np.clip(i - 1, 0, None), axis=1)
        inputs = np.where(i < 0, string, np.where((i > 0) & (i < length), before, separator)).astype(np.int32)
        asked = (i >= 0) & (i < length)
        return Batch(inputs, np.where(asked, again, 0).astype(np.int32), asked.astype(np.float32))
