"""Many configurations that differ in values: what Hydra composes is composed once for each combination of kinds."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lmxexp.cli import conf

Load = Callable[[list[str]], DictConfig]
"""Composes one line of overrides, with Hydra, into a configuration that has the node ``hydra``."""
Bases = dict[tuple[str, ...], DictConfig]
"""What was composed for the overrides that choose kinds."""


class Composer:
    """Composes lines of overrides as Hydra does, a tenth as long each.

    Lines that choose the same kinds differ in values alone, so each combination of kinds is composed by Hydra once,
    and the values are laid on top as Hydra lays them: 20 ms instead of 200 a line.

    Args:
        load: Hydra's way.
        bases: what is known already, and is added to.
    """

    def __init__(self, load: Load, bases: Bases | None = None):
        self._load = load
        self._bases: Bases = {} if bases is None else bases

    def __call__(self, line: Sequence[str]) -> DictConfig:
        """The configuration of these overrides.

        Raises:
            HydraException, OmegaConfBaseException: as Hydra does.
        """
        parsed = OverridesParser.create().parse_overrides(list(line))
        values = [o for o in parsed if _is_plain_value(o)]
        if any(o.is_hydra_override() for o in parsed):  # they go into names and places too
            return self._load(list(line))
        chosen = tuple(text for text, o in zip(line, parsed, strict=True) if o not in values)
        if chosen not in self._bases:
            self._bases[chosen] = self._load(list(chosen))
        if self._bases[chosen].hydra.searchpath:  # groups there Hydra alone sees
            return self._load(list(line))
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
    return (
        not override.is_hydra_override()
        and not override.is_sweep_override()
        and not conf.is_group(override.key_or_group)
    )


_MOST = 64
"""Bases that a process keeps, some 2 MB each."""
_kept: Bases = {}
_of: object = None
"""What the kept ones were composed from."""


def composed(load: Load, line: Sequence[str]) -> DictConfig:
    """`Composer` over all calls of this process, for our own configuration alone, as its files are now.

    What a user's own is composed of may hang on more than files (``${oc.env:…}`` among its defaults).
    """
    global _of
    if (now := (os.getcwd(), _files())) != _of:
        _kept.clear()
        _of = now
    try:
        return Composer(load, _kept)(line)
    except (HydraException, OmegaConfBaseException, ValueError):
        return load(list(line))  # what is wrong is said as always
    finally:
        if len(_kept) > _MOST:
            _kept.pop(next(iter(_kept)))


def _files() -> list[tuple[str, int, int]]:
    """All of our configuration's, with what changes when one does."""
    found = []
    for folder, _, names in os.walk(conf.conf_dir()):
        for name in names:
            about = os.stat(path := os.path.join(folder, name))
            found.append((path, about.st_mtime_ns, about.st_size))
    return sorted(found)
