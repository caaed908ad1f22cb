"""Points composed in few steps are those that Hydra composes in many; and what was composed stays so."""

import copy
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lmxexp import compose
from lmxexp.cli.composer import Composer
from lmxexp.compose import complete
from lmxexp.sweep.composing import FrozenLoader
from tests.sweep.planning import sweep


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A sweep with a kind of the user's own."""
    folder = tmp_path_factory.mktemp("my") / "conf"
    (folder / "model" / "attention").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "model" / "attention" / "mine.yaml").write_text("# Mine.\ndefaults: [gqa, _self_]\nscale: 0.25\n")
    (folder / "experiment" / "mine.yaml").write_text(EXPERIMENT)
    with sweep(tmp_path_factory.mktemp("sweep"), config_dir=folder) as ready:
        yield ready


EXPERIMENT = """# @package _global_
# Mine.
defaults: [{override /model: gpt}, {override /optim: lion}]
train: {steps: 7}
seed: 5
"""

LINES = [
    ["attention=mine", "seed=1"],
    ["model=gpt", "attention=mha", "attention.scale=0.5", "train.steps=5"],
    ["model=gemma3", "model/attention=mla", "model.attention.kv_rank=8"],
    ["train={steps:3,batch_size:2}", "tags=[a,b]", "model.attention={scale:0.5}"],
    ["+train.extra=1", "++data.path=x.txt", "++new={a:{b:[1,2]}}", "~model.dropout"],
    ["model=rwkv7", "callback=[evaluate]", "logger=[]", "callback.evaluate.every=3"],
    ["experiment=mine", "seed=6", "optim=adamw"],
    ["model=jamba", "attention@ssm=mla", "size=tiny"],
    ["model=deepseek_v3", "softcap@score_softcap=tanh", "model.score_softcap.cap=3"],
    ["model=qwen3_next", "name='a b: c'", "data=text", "data.path='x, y.txt'"],
    ["seed=${train.steps}", "train.max_grad_norm=inf", "optim.weight_decay=null"],
    ["match=params", "match.reference='attention=mha'", "tune=optim.learning_rate", "tune.trials=3"],
    ["model=mamba2", "hydra.job.name=x", "seed=1"],
    [],
]


def plain(cfg) -> Any:
    return OmegaConf.to_container(cfg, resolve=False)


def point(composer: Composer, line):
    """The configuration of a point, as it is without Hydra."""
    cfg = composer(line)
    HydraConfig.instance().set_config(cfg.copy())
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    task = cfg.copy()
    OmegaConf.set_struct(task, False)
    del task["hydra"]
    return complete(task, choices)


def refused(call):
    try:
        return plain(call())
    except Exception as error:
        return type(error).__name__, " ".join(str(error).split())


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_point_is_what_hydra_composes(started, line):
    """All of it, Hydra's own node too; composed alone, and after others that share its kinds."""
    composer = started.composer
    want = started.loader.load_sweep_config(started.master, list(line))
    assert plain(composer(line)) == plain(want)
    composer([*line, "++seed=77", "++train.steps=78", "++optim.learning_rate=79", "++left.behind=1"])
    again = composer(line)
    assert plain(again) == plain(want)
    assert [*again] == [*want]
    assert OmegaConf.is_struct(again)


@pytest.mark.parametrize("line", [LINES[0], LINES[6], LINES[7]], ids=" ".join)
def test_a_point_is_what_one_run_would_be(started, line, tmp_path):
    config_dir = next(
        source.path for source in started.loader.get_sources() if source.provider == "command-line"
    ).removeprefix("file://")
    ours = point(started.composer, line)
    alone = compose(line, config_dir=config_dir)
    assert plain(ours) == plain(alone)
    assert list(ours) == list(alone)


@pytest.mark.parametrize(
    "line",
    [["attention=nonesuch"], ["nonesuch=1"], ["train.nonesuch=1", "seed=1"], ["seed=1", "+seed=2"], ["~nonesuch"],
     ["attention@nonesuch=gqa"], ["train=nonesuch"], ["seed@x=1"]],
    ids=" ".join,
)  # fmt: skip
def test_mistakes_are_hydras(started, line):
    ours = refused(lambda: started.composer(line))
    hydras = refused(lambda: started.loader.load_sweep_config(started.master, list(line)))
    assert isinstance(ours, tuple), "it is a mistake"
    assert ours == hydras


def test_kinds_are_composed_once(started, monkeypatch):
    """What makes a large sweep's plan quick."""
    calls, load = [], started.loader.load_sweep_config
    monkeypatch.setattr(started.loader, "load_sweep_config", lambda *args: calls.append(args) or load(*args))
    composer = started.composer
    for kind in ("mha", "gqa"):
        for seed in range(5):
            assert composer([f"attention={kind}", f"seed={seed}", "train.steps=5"]).seed == seed
    assert len(calls) == 2
    composer(["hydra.job.name=x", "seed=1"])
    assert len(calls) == 3


def test_groups_on_hydras_own_search_path_are_found(tmp_path):
    folder = tmp_path / "elsewhere"
    (folder / "colour").mkdir(parents=True)
    (folder / "colour" / "red.yaml").write_text("# @package _global_\nseed: 99\n")
    with sweep(tmp_path / "s", f"hydra.searchpath=[file://{folder}]") as ready:
        assert ready.composer(["+colour=red", "train.steps=3"]).seed == 99


def test_the_hour_in_a_name_is_the_sweeps(tmp_path):
    with sweep(tmp_path / "s", "hydra.sweep.dir=s/${now:%f}") as ready:
        place = ready.master.hydra.sweep.dir
        composer = ready.composer
        assert [composer([f"seed={i}"]).hydra.sweep.dir for i in (1, 2)] == [place] * 2
        assert composer(["hydra.job.name=x"]).hydra.sweep.dir == place


# Frozen


@pytest.fixture
def frozen(tmp_path):
    """A loader that has frozen one point, and the YAML file that its kind came from."""
    folder = tmp_path / "conf" / "model" / "attention"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine.\ndefaults: [gqa, _self_]\nscale: 0.25\n")
    with sweep(tmp_path / "s", config_dir=tmp_path / "conf") as ready:
        loader = FrozenLoader(ready.loader)
        line = ["attention=mine", "seed=1"]
        loader.freeze(line, ready.composer(line), subdir="3_seed=1")
        yield loader, ready, folder / "mine.yaml"


@pytest.mark.parametrize("edit", ["changed", "removed"])
def test_a_frozen_point_stays_what_it_was(frozen, edit):
    loader, ready, file = frozen
    before = plain(loader.load_sweep_config(ready.master, ["attention=mine", "seed=1"]))
    if edit == "changed":
        file.write_text(file.read_text().replace("0.25", "0.75"))
        assert ready.composer(["attention=mine", "seed=1"]).model.attention.scale == 0.75
    else:
        file.unlink()
    after = loader.load_sweep_config(ready.master, ["attention=mine", "seed=1"])
    assert plain(after) == before
    assert after.model.attention.scale == 0.25
    assert after.hydra.sweep.subdir == "3_seed=1"


def test_what_a_launcher_does_to_a_point_does_not_stay(frozen):
    loader, ready, _ = frozen
    line = ["attention=mine", "seed=1"]
    cfg = loader.load_sweep_config(ready.master, line)
    before = plain(cfg)
    cfg.hydra.job.num = 17
    cfg.model.attention.scale = 9
    assert plain(loader.load_sweep_config(ready.master, line)) == before


def test_it_can_be_sent_to_another_process(frozen):
    loader, ready, file = frozen
    sent = cloudpickle.dumps(loader)
    file.unlink()
    received = pickle.loads(sent)
    line = ["attention=mine", "seed=1"]
    assert plain(received.load_sweep_config(ready.master, line)) == plain(loader.load_sweep_config(ready.master, line))


def test_other_questions_are_passed_on(frozen):
    loader, ready, _ = frozen
    assert loader.load_sweep_config(ready.master, ["seed=4"]).seed == 4
    assert "mine" in loader.get_group_options("model/attention")
    assert loader.list_groups("model") == ready.loader.list_groups("model")
    assert loader.get_search_path() == ready.loader.get_search_path()
    assert loader.get_sources() == ready.loader.get_sources()


def test_the_place_of_a_point_is_found_by_hydra(frozen):
    """Where `run_job` writes."""
    loader, ready, _ = frozen
    cfg = copy.deepcopy(loader.load_sweep_config(ready.master, ["attention=mine", "seed=1"]))
    HydraConfig.instance().set_config(cfg)
    assert Path(OmegaConf.select(cfg, "hydra.sweep.dir")) == ready.directory
    assert OmegaConf.select(cfg, "hydra.sweep.subdir") == "3_seed=1"
