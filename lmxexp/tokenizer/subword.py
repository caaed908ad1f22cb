"""What a tokenizer of the ``tokenizers`` library looks like to the rest of the code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tokenizers


class SubwordTokenizer:
    """Wraps a ``tokenizers.Tokenizer``: no special tokens added, no truncation, no padding.

    The end-of-text token written out in a text is encoded as the token, so files that mark their documents by
    ``<|endoftext|>`` mean what they say.

    Args:
        tokenizer: of the ``tokenizers`` library.
        eos: the token that ends a document; None: there is none.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos: str | None):
        # Files made for a particular model cut or pad to its context length.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer, self.eos = tokenizer, eos
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have holes
        self.eos_id: int | None = None if eos is None else vocabulary[eos]
        self._dtype = np.min_scalar_type(self.vocab_size - 1)
        self._lengths = _token_lengths(tokenizer, vocabulary, self.vocab_size)
        self.encodes_pieces = _encodes_pieces(tokenizer)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, self._dtype)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode`, on all cores."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, self._dtype) for e in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def n_bytes(self, ids: np.ndarray) -> int:
        """How many UTF-8 bytes of text the tokens stand for, special tokens none.

        Exact for byte-level vocabularies. For the others it is the length of the decoded text.
        """
        if self._lengths is None:
            return len(self.tokenizer.decode(ids.tolist()).encode("utf-8"))
        return int(self._lengths[ids].sum())

    def save(self, path: Path) -> None:
        state = {
            "class": "lmxexp.tokenizer.subword.SubwordTokenizer",
            "eos": self.eos,
            "tokenizer": json.loads(self.tokenizer.to_str()),
        }
        path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> SubwordTokenizer:
        import tokenizers

        return SubwordTokenizer(tokenizers.Tokenizer.from_str(json.dumps(state["tokenizer"])), state["eos"])


def _token_lengths(tokenizer: tokenizers.Tokenizer, vocabulary: dict[str, int], n: int) -> np.ndarray | None:
    """Bytes of each token, if every character of the vocabulary's spelling stands for one byte."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        return None
    lengths = np.zeros(n, np.int64)
    for token, i in vocabulary.items():
        lengths[i] = len(token)
    for i, added in tokenizer.get_added_tokens_decoder().items():
        lengths[i] = 0 if added.special else len(added.content.encode("utf-8"))
    return lengths


def _encodes_pieces(tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether texts cut by `lmxexp.data.corpus.pieces` give the tokens of the whole.

    With GPT-2's pattern a word ends at such a place anyway. What looks at the start of a text, or across a space, does
    not.
    """
    state = json.loads(tokenizer.to_str())
    before = state.get("pre_tokenizer") or {}
    added = state.get("added_tokens") or []
    return (
        state["model"].get("type") == "BPE"
        and state.get("normalizer") is None
        and before.get("type") == "ByteLevel"
        and before.get("use_regex", True)
        and not before.get("add_prefix_space", True)
        and not any(a["lstrip"] or a["rstrip"] or a["single_word"] or set(a["content"]) & set(" \n") for a in added)
    )
