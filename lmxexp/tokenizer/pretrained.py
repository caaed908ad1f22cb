"""A tokenizer that exists already: a ``tokenizers`` JSON file or a name on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.subword import SubwordTokenizer

if TYPE_CHECKING:
    import tokenizers

# What the common tokenizers call their end of text, the most specific first.
_EOS_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "</s>", "<eos>", "[SEP]")


class PretrainedTokenizer(SubwordTokenizer):
    """Reads the tokenizer as it is; nothing is learned.

    Args:
        path: a ``tokenizers`` JSON file, a directory with a ``tokenizer.json``, or a name on the hub such as ``gpt2``.
        revision: branch, tag or commit on the hub; used for hub names.
        eos: the token that ends a document; ``auto``: the first known name that the vocabulary has; None: there is
            none, documents are joined by a newline.
        texts: not used; every tokenizer is offered the training text.
        fingerprint: not used.
        cache_dir: not used; the hub's own cache keeps what it downloads.

    Raises:
        ConfigError: for a file that is missing or no tokenizer, a name that cannot be had, an unknown ``eos``.
    """

    def __init__(
        self,
        path: str,
        revision: str = "main",
        eos: str | None = "auto",
        texts: Callable[[], Iterator[str]] | None = None,
        fingerprint: str = "",
        cache_dir: Path | None = None,
    ):
        del texts, fingerprint, cache_dir
        tokenizer = _from_file_or_hub(path, revision)
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        if eos == "auto":
            eos = next((name for name in _EOS_NAMES if name in vocabulary), None)
        elif eos is not None and eos not in vocabulary:
            known = [name for name in _EOS_NAMES if name in vocabulary]
            raise ConfigError(
                f"tokenizer.eos={eos} is not in the vocabulary of tokenizer.path={path}: give a token that is"
                + (f", such as {known[0]}" if known else "")
                + ", or null for none"
            )
        super().__init__(tokenizer, eos)


def _from_file_or_hub(path: str, revision: str) -> tokenizers.Tokenizer:
    import tokenizers

    local = Path(path).expanduser()
    if local.is_dir():
        local = local / "tokenizer.json"
        if not local.is_file():
            raise ConfigError(f"tokenizer.path={path} has no tokenizer.json: give a tokenizers JSON file")
    if local.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(local))
        except Exception as error:  # the library raises nothing narrower
            raise ConfigError(
                f"tokenizer.path={path} is no JSON file of the tokenizers library ({error}): give one, as "
                "tokenizer.save writes it"
            ) from error
    if path.endswith(".json") or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"tokenizer.path={path} does not exist: give a tokenizers JSON file or a name on the hub")
    try:
        return tokenizers.Tokenizer.from_pretrained(path, revision=revision)
    except Exception as error:  # network, name and format errors come in many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"tokenizer.path={path} is no local file and could not be had from the hub at "
            f"tokenizer.revision={revision} ({reason}): check the name and the network, or "
            "give a local tokenizers JSON file"
        ) from error
