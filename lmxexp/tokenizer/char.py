"""Every distinct character of the text is a token."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmxexp.interfaces import ConfigError

_UNKNOWN = -1


class CharTokenizer:
    """The vocabulary is the sorted set of the characters (code points) that occur.

    Characters of the validation split are included, as they are in nanoGPT: a character that only occurs there could
    not be encoded otherwise. There is no end-of-text token: documents are joined by a newline.

    Args:
        texts: gives the text; its ``with_validation`` is used where it has one (see `Texts`).
        fingerprint: not used.
        cache_dir: not used.

    Raises:
        ConfigError: by ``encode``, for a character that is not in the vocabulary.

    Source: Karpathy, 2022, nanoGPT, ``data/shakespeare_char/prepare.py``.
    """

    eos_id: int | None = None
    encodes_pieces = True

    def __init__(
        self,
        texts: Callable[[], Iterator[str]],
        fingerprint: str = "",
        cache_dir: Path | None = None,
    ):
        del fingerprint, cache_dir
        every = getattr(texts, "with_validation", texts)
        distinct: set[str] = set()
        for text in every():
            distinct.update(text)
        if not distinct:
            raise ConfigError("tokenizer=char has no vocabulary, for the text is empty: give data with text in it")
        self._set_vocabulary("".join(sorted(distinct)))

    def _set_vocabulary(self, characters: str) -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self._codes = _code_points(characters)
        self._dtype = np.min_scalar_type(self.vocab_size - 1)
        # One entry more than the greatest code point: what lies above it is clipped to the unknown at the end.
        self._ids = np.full(int(self._codes.max()) + 2, _UNKNOWN, np.int32)
        self._ids[self._codes] = np.arange(self.vocab_size)
        self._lengths = np.array([len(c.encode("utf-8")) for c in characters])

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if ids.size and ids.min() == _UNKNOWN:
            at = int(np.argmin(ids))
            raise ConfigError(
                f"tokenizer=char does not know the character {text[at]!r} (U+{ord(text[at]):04X}, at {at}), for it is "
                f"not among the {self.vocab_size} of the text it was made from: leave it out, or take tokenizer=byte"
            )
        return ids.astype(self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        return self._codes[np.asarray(ids, np.int64)].tobytes().decode("utf-32-le")

    def n_bytes(self, ids: np.ndarray) -> int:
        """How many UTF-8 bytes of text the tokens stand for."""
        return int(self._lengths[ids].sum())

    def save(self, path: Path) -> None:
        state = {"class": "lmxexp.tokenizer.char.CharTokenizer", "characters": self.characters}
        path.write_text(json.dumps(state), encoding="utf-8")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "CharTokenizer":
        tokenizer = cls.__new__(cls)
        tokenizer._set_vocabulary(state["characters"])
        return tokenizer


def _code_points(text: str) -> np.ndarray:
    # A prompt from a terminal can hold lone surrogates; they are looked up, and unknown, like any other character.
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.dtype("<u4"))
