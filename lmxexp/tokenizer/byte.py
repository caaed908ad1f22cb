"""Every byte of the UTF-8 text is a token."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class ByteTokenizer:
    """256 tokens, nothing to learn, any text.

    There is no end-of-text token: documents are joined by a newline.

    Args:
        texts: not used; every tokenizer is offered the training text.
        fingerprint: not used.
        cache_dir: not used.
    """

    vocab_size = 256
    eos_id: int | None = None
    encodes_pieces = True

    def __init__(
        self,
        texts: Callable[[], Iterator[str]] | None = None,
        fingerprint: str = "",
        cache_dir: Path | None = None,
    ):
        del texts, fingerprint, cache_dir

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        return np.asarray(ids, np.uint8).tobytes().decode("utf-8", errors="replace")

    def n_bytes(self, ids: np.ndarray) -> int:
        """How many UTF-8 bytes of text the tokens stand for."""
        return len(ids)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"class": "lmxexp.tokenizer.byte.ByteTokenizer"}), encoding="utf-8")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "ByteTokenizer":
        del state
        return cls()
