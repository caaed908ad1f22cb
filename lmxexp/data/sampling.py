"""Random numbers that are a function of (seed, index), and the checks that all sources share."""

import numpy as np

from lmxexp.interfaces import ConfigError

EVAL_SEED = 2**64 - 1
"""No seed of the user's is as large: generated evaluation data is the same whatever the seed."""


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of batch ``index``.

    Philox is keyed: any index costs the same, and no two share numbers.

    Source: Salmon, Moraes, Dror, Shaw, 2011, "Parallel Random Numbers: As Easy as 1, 2, 3".
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def rank_rows(batch_size: int, rank: int, world: int) -> slice:
    """Which rows of the global batch are those of ``rank`` among ``world``."""
    if batch_size % world:
        raise ConfigError(
            f"train.batch_size={batch_size} must be a multiple of the {world} processes that share it: "
            f"{-(-batch_size // world) * world} is the next"
        )
    assert 0 <= rank < world
    rows = batch_size // world
    return slice(rank * rows, (rank + 1) * rows)


def check_sizes(seq_len: int, batch_size: int, seed: int, max_eval_tokens: int | None) -> None:
    """Refuse sizes that no batch can have."""
    if seq_len < 1:
        raise ConfigError(f"train.seq_len={seq_len} must be at least 1 token")
    if batch_size < 1:
        raise ConfigError(f"train.batch_size={batch_size} must be at least 1 sequence")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"data.seed={seed} must be at least 0 and below 2**63")
    if max_eval_tokens is not None and max_eval_tokens < 1:
        raise ConfigError(
            f"data.max_eval_tokens={max_eval_tokens} must be at least 1, or null for the whole validation split"
        )
