"""The configurations of all points, composed before the first starts, and handed out from there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, open_dict


class FrozenLoader(ConfigLoader):
    """Answers what every launcher asks, the configuration of a point, by what was composed before the sweep began.

    So editing a YAML file while the sweep goes on changes nothing, whichever launcher runs it. Launchers may send it to
    other processes.

    Args:
        loader: whom all other questions are passed to.
    """

    def __init__(self, loader: ConfigLoader):
        self._loader = loader
        self._frozen: dict[tuple[str, ...], DictConfig] = {}

    def freeze(self, line: Sequence[str], cfg: DictConfig, *, subdir: str) -> None:
        """Keep a point's configuration, which is the loader's from now on, with its directory below the sweep's."""
        with open_dict(cfg):
            cfg.hydra.sweep.subdir = subdir
        self._frozen[tuple(line)] = cfg

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        frozen = self._frozen.get(tuple(sweep_overrides))
        if frozen is None:
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        return copy.deepcopy(frozen)

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        return self._loader.load_configuration(*args, **kwargs)

    def get_search_path(self) -> Any:
        return self._loader.get_search_path()

    def get_sources(self) -> Any:
        return self._loader.get_sources()

    def list_groups(self, parent_name: str) -> list[str]:
        return self._loader.list_groups(parent_name)

    def get_group_options(self, *args: Any, **kwargs: Any) -> list[str]:
        return self._loader.get_group_options(*args, **kwargs)

    def compute_defaults_list(self, *args: Any, **kwargs: Any) -> Any:
        return self._loader.compute_defaults_list(*args, **kwargs)
