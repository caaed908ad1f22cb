"""The configurations of all points, composed once before the first starts, and handed out from there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict

from lmxexp.cli import conf


class Composer:
    """Composes a sweep's points.

    Points that choose the same kinds differ in values alone, so each combination of kinds is composed by Hydra once,
    and the values are laid on top as Hydra lays them: 20 ms instead of 200 a point.

    Args:
        loader: Hydra's.
        master: the sweep's own configuration, with the node ``hydra``.
    """

    def __init__(self, loader: ConfigLoader, master: DictConfig):
        self._loader, self._master = loader, master
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, line: Sequence[str]) -> DictConfig:
        """The configuration of the point with these overrides, the node ``hydra`` in it.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra does.
        """
        parsed = OverridesParser.create().parse_overrides(list(line))
        values = [o for o in parsed if _is_plain_value(o)]
        # Overrides of Hydra's own go into names and places too, and groups on its own search path it alone sees.
        if any(o.is_hydra_override() for o in parsed) or self._master.hydra.searchpath:
            return self._loader.load_sweep_config(self._master, list(line))
        chosen = tuple(text for text, o in zip(line, parsed, strict=True) if o not in values)
        if chosen not in self._bases:
            self._bases[chosen] = self._loader.load_sweep_config(self._master, list(chosen))
        cfg = copy.deepcopy(self._bases[chosen])  # with the values of ${now:…}
        ConfigLoaderImpl._apply_overrides_to_config(values, cfg)
        cfg.hydra.overrides.task = [o.input_line for o in parsed]
        names = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed, kv_sep=names.kv_sep, item_sep=names.item_sep, exclude_keys=names.exclude_keys
        )
        return cfg


def _is_plain_value(override: Override) -> bool:
    """``train.steps=5``: changes one value and no choice."""
    return not override.is_hydra_override() and not conf.is_group(override.key_or_group)


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
