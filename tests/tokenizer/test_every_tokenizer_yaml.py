"""What every tokenizer promises. Generated from conf/tokenizer."""

import inspect
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from lmxexp.interfaces import ConfigError, Tokenizer
from lmxexp.tokenizer.bpe import BpeTokenizer
from lmxexp.tokenizer.load import load

CONF = Path(__file__).parents[2] / "conf" / "tokenizer"
KINDS = sorted(file.stem for file in CONF.glob("*.yaml"))
FAMILY = "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
TEXTS = [
    "To be, or not to be: that is the question.\n",
    f"Größe, 漢字, العربية, e\u0301 and \N{GRINNING FACE}{FAMILY}\n\n\ttabs  spaces   \r\n",
    "def f(x):\n    return [x] * 3  # 0123456789\n",
    "\N{DESERET CAPITAL LETTER LONG I} \U0010ffff \x00\x7f\ufeff",
]

every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def make(tmp_path):
    def made(kind, texts=TEXTS, **overrides):
        cfg = OmegaConf.load(CONF / f"{kind}.yaml")
        if kind == "bpe":
            cfg.vocab_size = 300
        if kind == "pretrained":  # stands in for a file from the hub
            BpeTokenizer(lambda: iter(TEXTS), vocab_size=290).tokenizer.save(str(tmp_path / "pretrained.json"))
            cfg.path = str(tmp_path / "pretrained.json")
        cfg.merge_with(overrides)
        factory = instantiate(cfg, _convert_="all")
        return factory(texts=lambda: iter(texts), fingerprint=str(hash(tuple(texts))), cache_dir=tmp_path / "cache")

    return made


@every_kind
def test_the_yaml_has_a_description_and_every_setting_of_the_constructor(kind):
    file = CONF / f"{kind}.yaml"
    assert file.read_text().startswith("# ")
    cfg = OmegaConf.to_container(OmegaConf.load(file))
    assert cfg.pop("_partial_") is True
    parameters = inspect.signature(get_class(cfg.pop("_target_"))).parameters
    assert set(cfg) | {"texts", "fingerprint", "cache_dir"} == set(parameters)
    assert all(p.annotation is not inspect.Parameter.empty for p in parameters.values())


@every_kind
@pytest.mark.parametrize("text", [*TEXTS, "".join(TEXTS), ""])
def test_round_trip(make, kind, text):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert isinstance(tokenizer, Tokenizer)
    assert ids.ndim == 1
    assert ids.dtype == np.min_scalar_type(tokenizer.vocab_size - 1)
    assert ids.size == 0 or ids.max() < tokenizer.vocab_size
    assert tokenizer.decode(ids) == tokenizer.decode(ids.tolist()) == text
    assert tokenizer.n_bytes(ids) == len(text.encode())


@every_kind
def test_saved_and_loaded_it_is_the_same(make, kind, tmp_path):
    tokenizer = make(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path / "tokenizer.json")
    assert (loaded.vocab_size, loaded.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
    ids = tokenizer.encode("".join(TEXTS))
    assert np.array_equal(loaded.encode("".join(TEXTS)), ids)
    assert loaded.decode(ids) == "".join(TEXTS)
    assert loaded.n_bytes(ids) == tokenizer.n_bytes(ids)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@every_kind
def test_every_id_decodes(make, kind):
    tokenizer = make(kind)
    for i in range(tokenizer.vocab_size):
        assert isinstance(tokenizer.decode([i]), str)


@every_kind
def test_a_text_decoded_as_it_grows_is_stable(make, kind):
    """Beyond the U+FFFD at its end, which stands for a character that has not come whole, nothing changes."""
    tokenizer = make(kind)
    text = "".join(TEXTS).replace("\ufeff", "")
    ids = tokenizer.encode(text)
    for n in range(len(ids) + 1):
        assert text.startswith(tokenizer.decode(ids[:n]).rstrip("\ufffd"))


@every_kind
def test_the_end_of_text_has_no_bytes(make, kind):
    tokenizer = make(kind)
    if tokenizer.eos_id is not None:
        assert 0 <= tokenizer.eos_id < tokenizer.vocab_size
        assert tokenizer.n_bytes(np.array([tokenizer.eos_id])) == 0


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, r"does not exist"),
        ("", r"cannot be read"),
        ('{"class": "lmxexp.tok', r"cannot be read"),
        ("[1, 2]", r"holds no tokenizer"),
        ('{"vocab": 3}', r"holds no tokenizer"),
        ('{"model": 3}', r"is no JSON file of the tokenizers library"),
        (
            '{"class": "not_installed.Mine"}',
            r"of the class not_installed\.Mine, which cannot be imported .*Python path",
        ),
        ('{"class": "lmxexp.tokenizer.byte.Bite"}', r"which cannot be imported"),
        ('{"class": "Mine"}', r"which cannot be imported"),
        ('{"class": "lmxexp.tokenizer.char.CharTokenizer"}', r"is damaged \(KeyError"),
        ('{"class": "lmxexp.tokenizer.subword.SubwordTokenizer", "eos": null, "tokenizer": {}}', r"is damaged"),
    ],
)
def test_files_that_hold_no_tokenizer(tmp_path, contents, message):
    file = tmp_path / "tokenizer.json"
    if contents is not None:
        file.write_text(contents)
    with pytest.raises(ConfigError, match=message) as caught:
        load(file)
    assert str(file) in str(caught.value)


def test_a_class_of_the_users_own_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "my_package.py").write_text(
        "from lmxexp.tokenizer.byte import ByteTokenizer\n"
        "class Shouting(ByteTokenizer):\n"
        "    def decode(self, ids):\n"
        "        return super().decode(ids).upper()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"class": "my_package.Shouting"}')
    assert load(tmp_path / "tokenizer.json").decode([97]) == "A"
