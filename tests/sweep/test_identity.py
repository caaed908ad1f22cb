"""What makes two runs the same run, setting by setting, and with real data."""

import copy
import hashlib
import re
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmxexp import compose
from lmxexp.identity import identity
from lmxexp.sweep.prepare import Preparation
from tests.end_to_end.processes import TEXT, small

LEFT_OUT = re.compile(
    r"(name|tags|resume|choice\..*|logger\..*|debug\..*|sweep\..*|match\..*|tune\..*"
    r"|train\.(keep|memory_limit_gb|self_test|parallel|remat|profile|profile_capture)"
    r"|data\.(path|val_path|cache_dir)|tokenizer\.path)"
)
"""Names, places, reports, and how a sweep came by a configuration."""
LATER = {"document_mask": True, "packing": "best_fit", "order": "shuffle"}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Any:
    overrides = small(tmp_path_factory.mktemp("data"), "logger=[console,jsonl,wandb]", "tokenizer=pretrained")
    cfg = compose([*overrides, "tokenizer.path=gpt2", "match=params", "tune.key=seed", "tags=[a]", "+data.val_path=x"])
    return OmegaConf.to_container(cfg, resolve=True)


def leaves(node, path=()):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, (*path, key))
    elif not isinstance(node, dict):
        yield path


def changed(config, path):
    config = copy.deepcopy(config)
    node = config
    for key in path[:-1]:
        node = node[key]
    before = node[path[-1]]
    match before:
        case bool():
            after = not before
        case int() | float():
            after = before + 1
        case list():
            after = [*before, "more"]
        case _:
            after = f"{before}x"
    node[path[-1]] = after
    return config


def test_every_setting_counts_but_names_places_and_reports(config):
    before = identity(config, "data")
    paths = list(leaves(config))
    assert len(paths) > 100
    free = set()
    for path in paths:
        if identity(changed(config, path), "data") == before:
            free.add(".".join(path))
    assert free == {".".join(path) for path in paths if LEFT_OUT.fullmatch(".".join(path))}
    for wanted in ("name", "tags", "data.path", "data.cache_dir", "train.memory_limit_gb", "match.kind", "tune.key",
                   "choice.attention", "logger.wandb.project", "debug.traceback", "tokenizer.path"):  # fmt: skip
        assert wanted in free
    for counting in ("seed", "data.seed", "data.val_fraction", "train.steps", "train.compile", "model.attention.scale",
                     "optim._target_", "callback.evaluate.every", "tokenizer._target_"):  # fmt: skip
        assert counting in {".".join(path) for path in paths} - free


def test_nodes_that_a_run_has_not_count_only_where_a_run_would_read_them(config):
    before = identity(config, "data")
    for key in ("sweep", "match", "tune", "logger", "debug", "name", "tags"):
        assert identity({k: v for k, v in config.items() if k != key}, "data") == before, key
    assert identity({**config, "anything": {"of": "theirs"}}, "data") != before


def test_the_data_counts(config):
    assert identity(config, "data") != identity(config, "other data")


def test_order_of_settings_does_not_count(config):
    def turned(node):
        return {k: turned(v) for k, v in reversed(node.items())} if isinstance(node, dict) else node

    assert identity(turned(config), "data") == identity(config, "data")


def test_order_within_a_list_does(config):
    one, two = ({**config, "model": {**config["model"], "pattern": order}} for order in (["a", "b"], ["b", "a"]))
    assert identity(one, "data") != identity(two, "data")


def test_paths_of_parts_that_are_no_data_count(config):
    """A model that is read from a file is another model."""
    one, two = ({**config, "model": {**config["model"], "path": path}} for path in ("a", "b"))
    assert identity(one, "data") != identity(two, "data")


def test_it_is_short_and_always_the_same():
    """An identity stands in the files of sweeps that go on with a later version."""
    config = {"seed": 1, "model": {"d_model": 32, "scale": 0.1, "window": None}, "name": "x", "data": {"path": "p"}}
    text = '[{"data": {}, "model": {"d_model": 32, "scale": 0.1, "window": null}, "seed": 1}, "abc"]'
    assert identity(config, "abc") == hashlib.sha256(text.encode()).hexdigest()[:16] == "83f172a3afd4545b"
    assert identity(config, "abc") == identity({**config, "name": "y", "data": {"path": "q"}}, "abc")


# With real data


@pytest.fixture
def of(tmp_path):
    """``of("seed=2")``: the identity of a run, its data read."""

    def read(*overrides):
        cfg = compose(small(tmp_path, *overrides))
        before = OmegaConf.to_yaml(cfg)
        result = Preparation().identity(cfg)
        assert OmegaConf.to_yaml(cfg) == before, "it stays as it was"
        return result

    return read


def test_it_is_the_text_that_counts_not_where_it_lies(of, tmp_path):
    text = tmp_path / "bottles.txt"
    before = of()
    (tmp_path / "elsewhere").mkdir()
    moved = text.rename(tmp_path / "elsewhere" / "other name.txt")
    assert of(f"data.path='{moved}'", f"data.cache_dir={tmp_path}/cache") == before
    moved.write_text(TEXT[:1000])
    (tmp_path / "second.txt").write_text(TEXT[1000:])
    assert of(f"data.path=['{moved}','{tmp_path}/second.txt']") == before, "the same text in two files"
    text.write_text(TEXT.replace("wall", "hill", 1))
    assert of() != before
    text.write_text(TEXT)
    assert of() == before


def test_how_the_text_is_cut_and_coded_counts(of):
    assert len({of(), of("data.val_fraction=0.2"), of("data.max_eval_tokens=128"), of("tokenizer=char"),
                of("data.seed=5"), of("tokenizer=bpe", "tokenizer.vocab_size=260")}) == 6  # fmt: skip


def test_what_a_run_is_called_and_where_it_reports_does_not_count(of):
    assert of() == of("name=x", "tags=[a,b]", "logger=[console]", "train.keep=9", "debug.traceback=true")
    assert of() != of("seed=2")


def test_settings_of_data_that_came_later_count_where_they_say_something_new(config):
    """A sweep of before goes on, though its configurations have more keys today."""
    before = {**config, "data": {k: v for k, v in config["data"].items() if k not in LATER}}
    assert identity(config, "data") == identity(before, "data")
    for key, value in LATER.items():
        assert identity({**config, "data": {**config["data"], key: value}}, "data") != identity(config, "data")
