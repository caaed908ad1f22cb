"""The tokenizers that stand beside an exported model encode and decode as ours do."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from lmxexp.export.tokenizer_files import tokenizer_files
from lmxexp.export.write import family_names, model_type_of
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.bpe import BpeTokenizer
from lmxexp.tokenizer.byte import ByteTokenizer
from lmxexp.tokenizer.char import CharTokenizer
from lmxexp.tokenizer.pretrained import PretrainedTokenizer
from tests.tokenizer.test_every_tokenizer_yaml import KINDS

# What tokenizers like to stumble over: contractions, runs of blanks, line ends, accents in two code points, marks that
# other models would take for special tokens, the zero, the last code point.
TEXT = (
    "Hello, world!\n\tdéjà vu  e\u0301 日本語 🙂 don't \r\n\n \u00a0 <s> [UNK] <unk> \ufffd\u2028\0\U0010ffff 12345  "
)


def random_text(seed, n=400):
    rng = np.random.default_rng(seed)
    points = np.concatenate([rng.integers(0, 0x80, n // 2), rng.integers(0, 0x110000, n // 2)])
    return "".join(chr(p) for p in rng.permutation(points) if not 0xD800 <= p < 0xE000)


def pretrained(directory):
    """As many published ones: starts every text with a special token, and cuts it."""
    alphabet = {c: i + 2 for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    theirs = tokenizers.Tokenizer(models.BPE(vocab={"<s>": 0, "</s>": 1, **alphabet, "ab": 258}, merges=[("a", "b")]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = decoders.ByteLevel()
    theirs.add_special_tokens(["<s>", "</s>"])
    theirs.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    theirs.enable_truncation(7)
    theirs.save(str(directory / "given.json"))
    return PretrainedTokenizer(str(directory / "given.json"))


def ours(kind, directory):
    if kind == "pretrained":
        return pretrained(directory)
    if kind == "byte":
        return ByteTokenizer()
    texts = [TEXT, random_text(0), "low lower lowest"] * 3
    return CharTokenizer(lambda: iter(texts)) if kind == "char" else BpeTokenizer(lambda: iter(texts), vocab_size=400)


def write(tokenizer, directory, model_type="llama"):
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in tokenizer_files(tokenizer, 128, model_type).items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def texts_for(kind):
    known = [
        TEXT,
        random_text(0),
        "",
        " ",
        "ab ab"[: 5 if kind != "char" else 0],
        "<|endoftext|>"[: 13 if kind == "bpe" else 0],
    ]
    return known if kind == "char" else [*known, *(random_text(seed) for seed in range(1, 6))]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_the_tokenizer(kind, tmp_path):
    tokenizer = ours(kind, tmp_path)
    write(tokenizer, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts_for(kind):
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text).ids == ids
        assert theirs.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids) == text
    rng = np.random.default_rng(0)
    for _ in range(20):  # halves of characters too
        ids = rng.integers(0, tokenizer.vocab_size, 30).tolist()
        assert theirs.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    # We read it as well.
    again = PretrainedTokenizer(str(tmp_path))
    assert (again.vocab_size, again.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


@pytest.mark.parametrize("family_name", family_names())
@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer(kind, family_name, tmp_path):
    """transformers takes the file as it is, whatever tokenizer models of that type usually have."""
    transformers = pytest.importorskip("transformers")
    tokenizer = ours(kind, tmp_path)
    model_type = model_type_of(family_name)
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip("transformers has no such model")
    write(tokenizer, tmp_path, model_type)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert len(theirs) == tokenizer.vocab_size
    for text in texts_for(kind):
        ids = tokenizer.encode(text).tolist()
        assert theirs.encode(text) == theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text


def test_an_unknown_character_is_an_error_there_too(tmp_path):
    write(CharTokenizer(lambda: iter(["abc\ufffd"])), tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("abd")


def test_a_tokenizer_of_the_users_own_is_refused():
    class Own(ByteTokenizer):
        pass

    assert tokenizer_files(Own(), 8)  # what is derived from ours is one of ours
    with pytest.raises(ConfigError, match="object has no equal"):
        tokenizer_files(object(), 8)  # pyright: ignore
