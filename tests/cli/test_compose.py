import sys
import types

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import lmxexp
from lmxexp.cli.conf import conf_dir
from lmxexp.compose import choice_key
from lmxexp.interfaces import ConfigError


def test_it_can_be_repeated_and_says_what_was_chosen():
    cfg = lmxexp.compose()
    again = lmxexp.compose(["attention=mha", "logger=[jsonl]", "callback=[]", "seed=5", "softcap@score_softcap=tanh"])
    assert cfg.choice.model == "llama"
    assert cfg.choice.attention == "gqa"
    assert cfg.choice.logger == "console+jsonl+wandb"
    assert "experiment" not in cfg.choice, "nothing was chosen"
    assert not [key for key in cfg.choice if "hydra" in key]
    assert (again.choice.attention, again.choice.logger, again.choice.callback) == ("mha", "jsonl", "none")
    assert again.choice["softcap@score_softcap"] == "tanh"
    assert (cfg.name, again.name, again.seed) == ("llama-gqa", "llama-mha", 5)
    assert "hydra" not in cfg


def test_the_result_needs_no_hydra_and_keeps_its_interpolations():
    cfg = lmxexp.compose(["name=x-${hydra:runtime.choices.model}-${now:%Y}", "train.steps=7"])
    assert cfg.name.startswith("x-llama-20")
    resolved = OmegaConf.to_container(cfg, resolve=True)
    assert resolved["schedule"]["steps"] == 7
    assert OmegaConf.to_container(cfg, resolve=False)["schedule"]["steps"] == "${train.steps}"
    OmegaConf.create(OmegaConf.to_yaml(cfg))


def test_a_hydra_that_runs_already_is_left_as_it_was():
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.2", job_name="other"):
        before = GlobalHydra.instance().hydra
        assert lmxexp.compose(["attention=mqa"]).choice.attention == "mqa"
        assert GlobalHydra.instance().hydra is before
        assert hydra.version.getbase().minor == 2
        assert hydra.compose("config", ["attention=mqa"]).model.attention.n_kv_heads == 1
    lmxexp.compose()
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.instance().cfg is None


def test_a_hydra_is_left_as_it_was_after_a_mistake_too():
    with pytest.raises(ConfigError, match="did you mean gqa"):
        lmxexp.compose(["attention=gqq"])
    with pytest.raises(ConfigError, match=r"train\.steps"):
        lmxexp.compose(["train.step=1"])
    assert not GlobalHydra.instance().is_initialized()


def test_kinds_of_the_users(tmp_path):
    (tmp_path / "model" / "attention").mkdir(parents=True)
    (tmp_path / "model" / "attention" / "mine.yaml").write_text("# Mine.\n_target_: builtins.dict\nwindow: 3\n")
    cfg = lmxexp.compose(["attention=mine", "attention.window=4"], config_dir=tmp_path)
    assert cfg.model.attention.window == 4
    assert cfg.choice.attention == "mine"
    with pytest.raises(ConfigError, match="attention=mine: no such kind"):
        lmxexp.compose(["attention=mine"])
    with pytest.raises(ConfigError, match="no such directory"):
        lmxexp.compose(config_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model", "model"),
        ("model/attention", "attention"),
        ("model/attention@model.ssm", "attention@ssm"),
        ("model/attention@model.attention", "attention"),
    ],
)
def test_names_of_choices(key, name):
    assert choice_key(key) == name


def test_the_package_keeps_its_functions_when_the_files_of_that_name_are_imported():
    import lmxexp.compose

    assert not isinstance(lmxexp.compose, types.ModuleType)
    assert lmxexp.compose is sys.modules["lmxexp.compose"].compose
    setattr(lmxexp, "run", types.ModuleType("lmxexp.run"))  # noqa: B010  what the import of the file does
    assert not isinstance(lmxexp.run, types.ModuleType)
    assert {"compose", "run", "load", "build_model", "__version__"} <= set(dir(lmxexp))
    assert lmxexp.__version__
    with pytest.raises(AttributeError, match="nothing"):
        _ = lmxexp.nothing
