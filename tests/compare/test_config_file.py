import pytest
import yaml

from lmxexp.compare.config_file import ConfigReader, flatten
from tests.compare.made_runs import made_config

ODD = [
    "a: 1\nb:\n- x\n- y\nc: {d: 2}\n",
    "# a comment\na: 1\n\n# another\nb: null\n",
    "a: 'a text\n  over lines'\nb: |\n  block: not a key\n  more\nc: 1\n",
    "a:\n  b: &x [1, 2]\nc: *x\n",
    "'quoted key': 1\n\"other\": 2\n",
    "{a: 1, b: 2}\n",
    "a: 1\na_b: 2\n",
    "",
    "a: text with & and * in it\nb: 2*3\n",
    "---\na: 1\n",
]


@pytest.mark.parametrize("text", ODD)
def test_sections_are_what_the_whole_is(text):
    assert ConfigReader().read(text) == (yaml.safe_load(text) or {})


def test_a_configuration_of_a_run():
    reader = ConfigReader()
    for seed in (1, 2):
        text = yaml.safe_dump(made_config({"attention": "mha"}, seed=seed), sort_keys=False)
        assert reader.read(text) == yaml.safe_load(text)


def test_equal_sections_are_parsed_once():
    reader = ConfigReader()
    first, second = (reader.read(yaml.safe_dump(made_config(seed=seed), sort_keys=False)) for seed in (1, 2))
    assert first["model"] is second["model"]
    assert (first["data"]["seed"], second["data"]["seed"]) == (1, 2)


@pytest.mark.parametrize("text", ["a: [1\n", "just text\n", "- a\n- b\n"])
def test_no_mapping_is_refused(text):
    with pytest.raises((yaml.YAMLError, ValueError)):
        ConfigReader().read(text)


def test_flat_keys():
    assert flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": {}, "f": None}) == {
        "a.b": 1, "a.c.d": [1, 2], "e": {}, "f": None,
    }  # fmt: skip
