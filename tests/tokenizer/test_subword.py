"""The tokenizers of the tokenizers library: learned here, and read from files."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.bpe import EOS, BpeTokenizer
from lmxexp.tokenizer.pretrained import PretrainedTokenizer

TEXTS = [
    "the cat and the hat sat on the mat, größer als \N{GRINNING FACE}\n" * 20,
    "low lower lowest newest widest\n" * 30,
]


def bpe(texts=TEXTS, vocab_size=320, **settings):
    return BpeTokenizer(lambda: iter(texts), vocab_size=vocab_size, **settings)


def naive_merges(words, n_merges):
    """Byte-pair encoding as Sennrich et al. write it down: join the most frequent pair, again and again."""
    words = [list(word) for word in words]
    merges = []
    for _ in range(n_merges):
        counts = {}
        for word in words:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts.values())
        (pair,) = [p for p, n in counts.items() if n == best]
        merges.append("".join(pair))
        for i, word in enumerate(words):
            joined, rest = [], word
            while rest:
                n = 2 if tuple(rest[:2]) == pair else 1
                joined.append("".join(rest[:n]))
                rest = rest[n:]
            words[i] = joined
    return merges


def test_the_most_frequent_pairs_are_joined_first():
    words = ["abcd"] * 9 + ["bcd"] * 4 + ["cd"] * 2 + ["xy"] * 5
    learned = json.loads(bpe(["\n".join(words)], vocab_size=257 + 4).tokenizer.to_str())["model"]["merges"]
    assert ["".join(m) for m in learned] == naive_merges(words, 4) == ["cd", "bcd", "abcd", "xy"]


def test_the_vocabulary_is_bytes_end_of_text_and_merges():
    tokenizer = bpe(vocab_size=300)
    assert tokenizer.vocab_size == 300
    assert tokenizer.tokenizer.id_to_token(tokenizer.eos_id) == EOS
    assert bpe(["ab"], vocab_size=300).vocab_size == 258  # there is one pair to join


def test_written_out_end_of_text_is_the_token():
    tokenizer = bpe()
    ids = tokenizer.encode(f"one{EOS}two")
    assert (ids == tokenizer.eos_id).sum() == 1
    assert tokenizer.decode(ids) == f"one{EOS}two"
    assert tokenizer.n_bytes(ids) == 6


def test_a_batch_is_encoded_as_its_texts_are():
    tokenizer = bpe()
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert np.array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == tokenizer.encode(text).dtype


def test_only_the_first_characters_are_learned_from():
    short = bpe(max_chars=len(TEXTS[0]) + 5)
    assert short.tokenizer.to_str() == bpe([TEXTS[0], TEXTS[1][:5]]).tokenizer.to_str()
    assert short.tokenizer.to_str() != bpe().tokenizer.to_str()


LEARN = """
import hashlib, sys
from lmxexp.tokenizer.bpe import BpeTokenizer
text = open(sys.argv[1], encoding="utf-8").read()
print(hashlib.sha256(BpeTokenizer(lambda: iter([text]), vocab_size=600).tokenizer.to_str().encode()).hexdigest())
"""


def test_learning_is_deterministic():
    learned = {
        subprocess.run(
            [sys.executable, "-c", LEARN, json.__file__.replace("__init__", "decoder")],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        ).stdout
        for seed in "12"
    }
    assert len(learned) == 1


def test_what_was_learned_is_kept_by_text_and_settings(tmp_path):
    reads = []

    def texts():
        reads.append(1)
        return iter(TEXTS)

    def make(fingerprint="a", vocab_size=300, **settings):
        return BpeTokenizer(texts, fingerprint, tmp_path, vocab_size=vocab_size, **settings).tokenizer.to_str()

    first = make()
    assert make() == first
    assert len(reads) == 1
    make(fingerprint="b")
    make(vocab_size=299)
    make(max_chars=50)
    assert len(reads) == 4
    for file in (tmp_path / "tokenizers").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert make() == first
    assert len(reads) == 5
    make(fingerprint="")
    make(fingerprint="")
    assert len(reads) == 7


def test_a_cache_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        tokenizer = bpe(fingerprint="a", cache_dir=tmp_path / "file" / "cache")
    assert tokenizer.tokenizer.to_str() == bpe().tokenizer.to_str()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 256}, r"tokenizer\.vocab_size=256 is below 257"),
        ({"max_chars": 0}, r"tokenizer\.max_chars=0 must be at least 1"),
    ],
)
def test_settings_that_learn_nothing(settings, message):
    with pytest.raises(ConfigError, match=message):
        bpe(**settings)


# --- pretrained -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    learned = bpe()
    learned.tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_file_or_its_directory(file):
    for path in (file, file.parent):
        tokenizer = PretrainedTokenizer(str(path))
        assert np.array_equal(tokenizer.encode(TEXTS[0]), bpe().encode(TEXTS[0]))
        assert tokenizer.eos == EOS


def test_end_of_text_by_name_and_none(file):
    assert PretrainedTokenizer(str(file), eos="the").eos_id == PretrainedTokenizer(str(file)).encode("the")[0]
    assert PretrainedTokenizer(str(file), eos=None).eos_id is None
    with pytest.raises(ConfigError, match=r"tokenizer\.eos=</s> is not in the vocabulary .*<\|endoftext\|>"):
        PretrainedTokenizer(str(file), eos="</s>")


def test_settings_of_the_models_the_file_was_made_for_are_left_out(file):
    raw = tokenizers.Tokenizer.from_file(str(file))
    raw.enable_truncation(5)
    raw.enable_padding(length=2000)
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{EOS} $A {EOS}", special_tokens=[(EOS, raw.token_to_id(EOS))]
    )
    raw.save(str(file))
    tokenizer = PretrainedTokenizer(str(file))
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    assert tokenizer.decode(tokenizer.encode_batch(TEXTS)[1]) == TEXTS[1]


def test_a_vocabulary_that_is_not_made_of_bytes(tmp_path):
    """Like SentencePiece's: a mark for the space, an end of text of another name, no ids for some characters."""
    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], show_progress=False)
    )
    raw.save(str(tmp_path / "sp.json"))
    tokenizer = PretrainedTokenizer(str(tmp_path / "sp.json"))
    assert tokenizer.eos == "</s>"
    ids = tokenizer.encode("größer als the cat")
    assert tokenizer.decode(ids) == "größer als the cat"
    assert tokenizer.n_bytes(ids) == len("größer als the cat".encode())
    assert tokenizer.n_bytes(np.append(ids, tokenizer.eos_id)) == len("größer als the cat".encode())


def test_added_tokens_that_are_text_count_their_bytes(file):
    raw = tokenizers.Tokenizer.from_file(str(file))
    raw.add_tokens(["<tool>"])
    raw.save(str(file))
    tokenizer = PretrainedTokenizer(str(file))
    text = "größer <tool> als"
    assert raw.token_to_id("<tool>") in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.n_bytes(tokenizer.encode(text)) == len(text.encode())


def test_a_normalizer_loses_text(file):
    raw = tokenizers.Tokenizer.from_file(str(file))
    raw.normalizer = normalizers.Lowercase()
    raw.save(str(file))
    assert PretrainedTokenizer(str(file)).decode(PretrainedTokenizer(str(file)).encode("The")) == "the"


def test_files_and_names_that_cannot_be_had(tmp_path, monkeypatch):
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "directory").mkdir()
    for path, message in (
        ("bad.json", r"is no JSON file of the tokenizers library"),
        ("none.json", r"does not exist"),
        ("directory", r"has no tokenizer\.json"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            PretrainedTokenizer(str(tmp_path / path))
        assert f"tokenizer.path={tmp_path / path} " in str(caught.value)

    def offline(*_, **__):
        raise ConnectionError("no network\nand a long explanation")

    monkeypatch.setattr(tokenizers, "Tokenizer", type("Offline", (), {"from_pretrained": staticmethod(offline)}))
    with pytest.raises(ConfigError, match=r"tokenizer\.path=gpt2 .*tokenizer\.revision=main \(no network\): check"):
        PretrainedTokenizer("gpt2")
