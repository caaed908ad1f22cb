"""From overrides to a configuration, with or without Hydra's command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from lmxexp.cli import short_names
from lmxexp.cli.composer import composed
from lmxexp.cli.conf import conf_dir

CONFIG_NAME = "config"
VERSION_BASE = "1.3"

LISTS = ("callback", "logger", "param_groups")
"""Groups of which a run has any number; each kind is a node of its own under the group's name."""

_PLUGINS = str(Path(__file__).resolve().parent / "sweep" / "plugins")
"""Holds a part of the namespace package `hydra_plugins`, where Hydra takes sweepers and launchers from."""

_OF_THE_PROCESS = (GlobalHydra, HydraConfig, JobRuntime, version.VersionBase)


class LmxexpSearchPath(SearchPathPlugin):
    """Keeps our groups reachable for a user who brings a ``--config-path`` of their own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        ours = str(conf_dir())
        if all(ours != (item.path or "").removeprefix("file://") for item in search_path.get_path()):
            search_path.append(provider="lmxexp", path=f"file://{ours}")


def install() -> None:
    """What has to be in place before Hydra starts: short names and the search path. Harmless to repeat."""
    short_names.install()
    if _PLUGINS not in sys.path:
        sys.path.append(_PLUGINS)
    plugins = Plugins.instance()  # finds what is installed, and ours, unless it was there before
    plugins.register(LmxexpSearchPath)
    if "hydra_plugins.lmxexp_sweep.GridSweeper" not in plugins.class_name_to_class:
        for clazz in vars(import_module("hydra_plugins.lmxexp_sweep")).values():
            if (
                isinstance(clazz, type)
                and issubclass(clazz, Sweeper | Launcher)
                and clazz.__module__ == "hydra_plugins.lmxexp_sweep"
            ):
                plugins.register(clazz)


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """The configuration that a command line would run, for notebooks and scripts.

    Args:
        overrides: as on the command line, short names too: ``["attention=mha", "train.steps=100"]``. With
            ``resume=RUN_DIR`` the configuration of that run.
        config_dir: a directory with kinds of your own, as ``--config-dir``.

    Returns:
        The configuration, interpolations unresolved. ``choice`` holds the chosen kind of every group.

    Raises:
        ConfigError: an override that Hydra cannot take; the message says what was meant, as far as can be guessed.
    """
    from lmxexp.cli import resume
    from lmxexp.cli.errors import refuse
    from lmxexp.cli.explain import explain

    with started(config_dir) as hydra:
        plan = resume.plan(list(overrides))
        asked = plan.for_hydra if plan else list(overrides)

        def load(line: list[str]) -> DictConfig:
            return hydra.compose_config(CONFIG_NAME, line, RunMode.RUN, from_shell=False)

        try:
            cfg = load(asked) if config_dir is not None else composed(load, asked)
        except (HydraException, ValueError) as error:  # Hydra raises both
            if problems := explain(error, asked, hydra.config_loader):
                refuse(problems)
            raise
        HydraConfig.instance().set_config(cfg)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        with open_dict(cfg):
            del cfg["hydra"]
        cfg = complete(cfg, choices)
        return plan.configuration(cfg) if plan else cfg


@contextmanager
def started(config_dir: str | Path | None = None, config_path: str | None = None) -> Iterator[Hydra]:
    """A Hydra of our own; the one that the process may have is put aside and given back."""
    install()
    before = {kind: Singleton._instances.pop(kind, None) for kind in _OF_THE_PROCESS}
    version.setbase(VERSION_BASE)
    search_path = create_config_search_path(config_path or str(conf_dir()))
    if config_dir is not None:
        extra = Path(config_dir).expanduser().resolve()
        if not extra.is_dir():
            from lmxexp.cli.errors import refuse

            refuse(f"--config-dir={config_dir}: there is no such directory")
        # Where Hydra puts it too: behind our own, before what it generates itself.
        search_path.prepend("command-line", f"file://{extra}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2(task_name="lmxexp", config_search_path=search_path)
    finally:
        for kind, instance in before.items():
            Singleton._instances.pop(kind, None)
            if instance is not None:
                Singleton._instances[kind] = instance


def complete(cfg: DictConfig, choices: Any) -> DictConfig:
    """Fill ``choice``, and fix what only Hydra can say while it runs (the name, above all) to its value.

    Args:
        cfg: composed, without the node ``hydra``; changed in place.
        choices: Hydra's ``runtime.choices``.
    """
    with open_dict(cfg):
        cfg["choice"] = chosen(cfg, choices)
        fix_hydra(cfg)
    return cfg


def chosen(cfg: DictConfig, choices: Any) -> dict[str, str]:
    """``{"model": "llama", "attention": "gqa", "softcap@score_softcap": "none", "logger": "console+jsonl", …}``.

    A group goes by its last name, or by all of it where two would be equal; what is chosen as null is left out.
    """
    # Hydra goes through the defaults from the end.
    ordered = reversed(list(choices.items()))
    groups = {k: v for k, v in ordered if v is not None and k.split("/")[0] != "hydra" and k not in LISTS}
    last = [choice_key(key) for key in groups]
    result = {choice_key(key) if last.count(choice_key(key)) == 1 else key: str(v) for key, v in groups.items()}
    for group in LISTS:
        kinds = cfg.get(group)
        result[group] = "+".join(map(str, kinds)) if kinds else "none"
    return result


def choice_key(override_key: str) -> str:
    """``model/attention`` → ``attention``; ``model/attention@model.ssm`` → ``attention@ssm``."""
    group, _, package = override_key.partition("@")
    name, entry = group.rpartition("/")[2], package.rpartition(".")[2]
    return f"{name}@{entry}" if entry and entry != name else name


def fix_hydra(node: DictConfig | ListConfig) -> None:
    """Replace every ``${hydra:…}`` and ``${now:…}`` by its value: outside of Hydra, and after it, there is none."""
    keys = list(node) if isinstance(node, DictConfig) else range(len(node))
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in keys:
        raw = node._get_node(key)
        assert not isinstance(raw, list)
        if isinstance(raw, DictConfig | ListConfig):
            fix_hydra(raw)
        elif raw is not None and isinstance(text := raw._value(), str) and ("${hydra:" in text or "${now:" in text):
            node[key] = node[key]
