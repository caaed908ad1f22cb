"""The configuration that a run leaves, read back."""

import math

import pytest
from omegaconf import OmegaConf

import lmxexp
from lmxexp.run_files import to_yaml

TEXTS = [
    *("1e-3", "1e3", "-2E+5", "1_000", "1.5", ".5", "5.", "0x1F", "017", "1:30", "e3", "1e", "1.5.2", "2026-01-01"),
    *("yes", "No", "on", "true", "null", "~", "", " ", "nan", ".nan", ".inf", "inf", "???", "${seed}"),
    *("a: b", "# c", "- d", "[1]", "{e}", "'f'", '"g"', "!", "&a", "*b", "%", "@c", "\\", "ä", "tab\t", "two\nlines"),
    *("x" * 200, "w " * 100),
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_stays_a_text(text):
    read = OmegaConf.create(to_yaml({"key": text, "keys": [text]}))
    assert OmegaConf.to_container(read) == {"key": text, "keys": [text]}


def test_every_other_value_stays_what_it_is():
    values = {
        "i": -3,
        "f": 1e-05,
        "big": 1e22,
        "inf": -math.inf,
        "b": False,
        "n": None,
        "e": {},
        "l": [],
        "d": {"a": [{"b": 1.0}]},
    }
    read = OmegaConf.to_container(OmegaConf.create(to_yaml(values)))
    assert read == values
    assert {k: type(v) for k, v in read.items()} == {k: type(v) for k, v in values.items()}
    assert math.isnan(OmegaConf.create(to_yaml({"x": math.nan})).x)


@pytest.mark.parametrize("model", ["llama", "deepseek_v3", "mamba2"])
def test_a_configuration_and_its_interpolations(model):
    cfg = lmxexp.compose([f"model={model}"])
    read = OmegaConf.create(to_yaml(cfg))
    assert OmegaConf.to_container(read) == OmegaConf.to_container(cfg)
    assert read.data.seed == cfg.seed
