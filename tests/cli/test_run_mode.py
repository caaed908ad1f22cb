"""One composition for a command line whose flags say what it is, and two where a file may."""

import pytest
from hydra._internal.hydra import Hydra
from omegaconf import OmegaConf

from lmxexp.cli import arguments
from lmxexp.cli.conf import conf_dir
from lmxexp.cli.run_mode import only_by_flags


@pytest.fixture
def composed(monkeypatch):
    """The modes in which Hydra composes."""
    modes, compose = [], Hydra.compose_config

    def counted(self, *args, run_mode, **kwargs):
        modes.append(run_mode.name)
        return compose(self, *args, run_mode=run_mode, **kwargs)

    monkeypatch.setattr(Hydra, "compose_config", counted)
    return modes


def test_a_run_is_composed_once(cli, composed):
    assert cli("attention=mha", "hydra.run.dir=here") == 0, cli.err
    assert composed == ["RUN"]
    assert Hydra.get_mode.__name__ == "get_mode", "put back"


def test_a_file_of_the_users_may_make_it_a_sweep(cli, composed, tmp_path):
    (tmp_path / "theirs/experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2\n"
    (tmp_path / "theirs/experiment/both.yaml").write_text(text)
    assert cli("--config-dir", "theirs", "experiment=both") == 0, cli.err
    assert [cfg.seed for cfg in cli.runs] == [1, 2]
    assert composed[0] == "MULTIRUN"


@pytest.mark.parametrize(
    ("argv", "by_flags"),
    [
        ([], True),
        (["-m", "seed=1,2", "hydra.sweep.dir=here"], True),
        (["experiment=lr_transfer", "model/attention=mha", "+data@data.sources.a=text"], True),
        (["hparams_search=random"], False),
        (["+hparams_search@_global_=random"], False),
        (["hydra.mode=MULTIRUN"], False),
        (["hydra={mode:MULTIRUN}"], False),
        (["hydra.searchpath=[file://there]"], False),
        (["hydra/launcher=joblib"], False),
        (["--config-dir", "there"], False),
        (["--config-dir=there"], False),
        (["-cn", "other"], False),
    ],
)
def test_what_can_say_it(argv, by_flags):
    assert only_by_flags(arguments.read(argv)) is by_flags


def test_of_our_files_those_of_one_group_set_it():
    found = set()
    for path in conf_dir().rglob("*.yaml"):
        content = OmegaConf.load(path)
        of_hydra = content if "hydra" in path.relative_to(conf_dir()).parts else content.get("hydra") or {}
        found |= {path.parent.name} if "mode" in of_hydra else set()
    assert found == {"hparams_search"}
