"""What is composed again in the same process is what Hydra would compose."""

import shutil
from importlib import import_module

import pytest
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli import composer, conf
from lmxexp.cli.composer import Composer

COMPOSE = import_module("lmxexp.compose")  # the name is that of the function as well
LINES = [
    [],
    ["train.steps=5", "attention.scale=0.5"],
    ["model=gpt", "attention=mha", "train={steps:3,batch_size:2}", "tags=[a,b]"],
    ["model=gpt", "attention=mha", "+train.extra=1", "++data.path=x.txt", "~model.dropout"],
    ["seed=${train.steps}", "train.max_grad_norm=inf", "name=${hydra:job.override_dirname}"],
    ["hydra.job.name=x", "seed=1"],
    ["train.step=1"],
    ["attention=gqq"],
    ["seed=1,2"],
]


@pytest.fixture
def calls(monkeypatch):
    """The lines that Hydra has composed; nothing is known at first."""
    monkeypatch.setattr(composer, "_kept", {})
    done, by_hydra = [], Hydra.compose_config

    def compose_config(self, config_name, overrides, *args, **kwargs):
        done.append(list(overrides))
        return by_hydra(self, config_name, overrides, *args, **kwargs)

    monkeypatch.setattr(Hydra, "compose_config", compose_config)
    return done


def outcome(line):
    try:
        return OmegaConf.to_container(lmxexp.compose(line), resolve=False)
    except Exception as error:
        return type(error), str(error)


def test_every_line_is_what_hydra_composes(calls, monkeypatch):
    """The first time, and after all others."""
    found = [[outcome(line) for line in LINES] for _ in range(2)]
    monkeypatch.setattr(COMPOSE, "composed", lambda load, line: load(list(line)))
    for line, *ours in zip(LINES, *found, strict=True):
        assert ours == [outcome(line)] * 2, line


def test_values_alone_need_no_hydra(calls):
    for seed in range(3):
        assert lmxexp.compose(["attention=mla", f"seed={seed}"]).seed == seed
    assert calls == [["attention=mla"]]
    lmxexp.compose(["attention=mha", "seed=1"])
    assert calls == [["attention=mla"], ["attention=mha"]]


def test_what_is_done_to_one_is_not_seen_in_the_next(calls):
    cfg = lmxexp.compose()
    OmegaConf.set_struct(cfg, False)
    cfg.train.steps, cfg.new, cfg.choice["attention"] = 12345, 1, "none"
    again = lmxexp.compose()
    assert again.train.steps != 12345
    assert "new" not in again
    assert again.choice["attention"] == "gqa"
    assert len(calls) == 1


def test_the_time_and_the_directory_are_those_of_the_call(calls, monkeypatch, tmp_path):
    line = ["name=${now:%f}-${hydra:runtime.cwd}"]
    first, second = lmxexp.compose(line).name, lmxexp.compose(line).name
    assert first != second
    monkeypatch.chdir(tmp_path)
    assert lmxexp.compose(line).name.endswith(f"-{tmp_path}")


def test_a_file_that_changes_is_read_again(calls, monkeypatch, tmp_path):
    own = shutil.copytree(conf.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(conf, "conf_dir", lambda: own)
    monkeypatch.setattr(COMPOSE, "conf_dir", lambda: own)
    file = own / "model" / "attention" / "mine.yaml"
    file.write_text("# Mine.\ndefaults: [gqa, _self_]\nscale: 0.25\n")
    line = ["attention=mine", "seed=1"]
    assert lmxexp.compose(line).model.attention.scale == 0.25
    file.write_text(file.read_text().replace("0.25", "0.125"))
    assert lmxexp.compose(line).model.attention.scale == 0.125
    file.unlink()
    with pytest.raises(lmxexp.interfaces.ConfigError, match="mine"):
        lmxexp.compose(line)


def test_only_so_many_are_kept(calls, monkeypatch):
    monkeypatch.setattr(composer, "_MOST", 2)
    for kind in ("mha", "mqa", "gqa"):
        lmxexp.compose([f"attention={kind}"])
    assert list(composer._kept) == [("attention=mqa",), ("attention=gqa",)]


def test_groups_that_only_hydra_finds_are_left_to_it():
    """Those on ``hydra.searchpath`` of a configuration: a choice of them looks like a value."""
    asked = []
    base = OmegaConf.create({"hydra": {"searchpath": ["file:///elsewhere"]}})

    def load(line):
        asked.append(line)
        return base

    assert Composer(load)(["theirs=one"]) is base
    assert asked == [[], ["theirs=one"]]
