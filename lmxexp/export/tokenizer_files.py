"""Our tokenizers as files that ``transformers.AutoTokenizer`` reads."""

import json
from typing import Any

from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer
from lmxexp.tokenizer.subword import SubwordTokenizer

_REBUILT = ("qwen2",)
"""Types of models for which transformers 5 makes a tokenizer of its own class from the vocabulary alone, whatever
``tokenizer_class`` says, unless there is an ``auto_map``."""


def tokenizer_files(tokenizer: Tokenizer, max_len: int, model_type: str = "") -> dict[str, Any]:
    """The contents of ``tokenizer.json`` and ``tokenizer_config.json``, by name of the file.

    What they encode and decode is what ours does, special tokens left out: nothing is put before or behind a text.

    Args:
        tokenizer: byte, char, bpe or pretrained.
        max_len: the longest sequence that the model was made for.
        model_type: the model's, in ``config.json``.

    Raises:
        ConfigError: a tokenizer of another class.
    """
    if isinstance(tokenizer, ByteTokenizer):
        content, eos = _byte(), None
    elif isinstance(tokenizer, CharTokenizer):
        content, eos = _char(tokenizer), None
    elif isinstance(tokenizer, SubwordTokenizer):
        content, eos = _subword(tokenizer), tokenizer.eos
    else:
        raise ConfigError(
            f"the tokenizer {type(tokenizer).__name__} has no equal in the tokenizers library that is known here: "
            "lmxexp.export.export(model, cfg, out_dir) without a tokenizer writes the model alone"
        )
    settings = {
        # The class that takes tokenizer.json as it is, whatever tokenizer models of this type usually have.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_len,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        "eos_token": eos,
        "unk_token": None,
        "pad_token": None,
    }
    if model_type in _REBUILT:
        settings["auto_map"] = {"AutoTokenizer": [None, None]}  # of code that comes with the model there is none
    return {"tokenizer.json": content, "tokenizer_config.json": settings}


def _byte() -> dict[str, Any]:
    """Byte-level BPE without merges, each byte's number its id."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    # The spelling of bytes: printable ones of Latin-1 stand for themselves, the rest for what follows U+0100.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    vocabulary = {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    return json.loads(tokenizer.to_str())


def _char(ours: CharTokenizer) -> dict[str, Any]:
    """Every character a word of its own; one that is not in the vocabulary is an error, as it is with ours."""
    import tokenizers
    from tokenizers import Regex, decoders, models, pre_tokenizers

    vocabulary = {character: i for i, character in enumerate(ours.characters)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # pyright: ignore
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore
    return json.loads(tokenizer.to_str())


def _subword(ours: SubwordTokenizer) -> dict[str, Any]:
    """As it is, without what would add special tokens to a text."""
    content = json.loads(ours.tokenizer.to_str())
    if (content.get("post_processor") or {}).get("type") != "ByteLevel":  # that one moves offsets alone
        content["post_processor"] = None
    return content
