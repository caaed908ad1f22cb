"""Finds settings that the user asks for and nothing reads: a silence here would make two runs look different."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmxexp.cli import conf, short_names
from lmxexp.cli.errors import refuse
from lmxexp.cli.read_settings import ReadSettings

_FREE_GROUPS = ("experiment", "debug", "hydra")
"""Groups that write all over the configuration; the settings in them are the file's, not typed by the user."""


def find(cfg: DictConfig, overrides: list[str], read: ReadSettings) -> Iterator[tuple[str, str]]:
    """``(key, message)`` of each override that has no effect in this configuration."""
    if not overrides:
        return
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    short_names.install()
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        refuse(str(error).splitlines()[0])
    for override in parsed:
        key, text = override.key_or_group, override.input_line or ""
        if override.is_delete() or override.is_hydra_override():
            continue
        if key.split(".")[0] == "tokenizer" and not _reads_tokenizer(cfg):
            yield key, f"{text} would be ignored: data={cfg.choice.data} is no text, and takes no tokenizer"
        elif conf.is_group(key) and not isinstance(override.value(), dict):
            if key.split("/")[0] not in _FREE_GROUPS:
                yield from _unread_kind(cfg, key, override.package, text, read)
        else:
            for leaf in _leaves(key, override.value()):
                if not read.is_read(leaf):
                    yield leaf, f"{text} would be ignored: nothing in this run reads {leaf}{_who_could(leaf)}"


def _unread_kind(
    cfg: DictConfig, group: str, package: str | None, text: str, read: ReadSettings
) -> Iterator[tuple[str, str]]:
    """A chosen kind must be read, every part of it that is not null: ``position=alibi`` sets ``position.attention``."""
    node_path = package or group.replace("/", ".")
    node = OmegaConf.select(cfg, node_path, throw_on_missing=False)
    if not isinstance(node, DictConfig) or (read.is_read(node_path) and "." not in node_path):
        return  # sizes go into `model`, a preset is many things: some of it is read by some kinds only
    raw: Any = OmegaConf.to_container(node, resolve=False)
    if raw.get("_target_") == "lmxexp.model.none.none":
        return  # nothing was asked for
    parts = {f"{node_path}.{key}": value for key, value in raw.items() if value is not None}
    unread = [path for path in parts if not read.is_read(path)]
    if parts and "_target_" in raw:
        unread = [] if read.is_read(node_path) else [node_path]
    if unread:
        yield node_path, f"{text} would be ignored: nothing in this run reads {unread[0]}{_who_could(unread[0])}"


def _reads_tokenizer(cfg: DictConfig) -> bool:
    """Whether the source makes tokens from text: one that does not says so by ``reads_tokenizer = False``."""
    return getattr(pkgutil.resolve_name(cfg.data["_target_"]), "reads_tokenizer", True)


def _leaves(key: str, value: Any) -> Iterator[str]:
    """``train={steps: 5}`` sets train.steps."""
    if isinstance(value, dict) and value:
        for k, v in value.items():
            yield from _leaves(f"{key}.{k}", v)
    else:
        yield key


def _who_could(path: str) -> str:
    """The kinds whose YAML refers to the setting, by group."""
    reference = re.compile(r"\$\{" + re.escape(path) + r"(\.|\})")
    mentions = lambda file: reference.search(OmegaConf.to_yaml(conf.content(file)))
    readers: dict[str, list[str]] = {}
    for root in conf.directories():
        for group in conf.groups(root):
            for kind, file in conf.kinds(root, group).items():
                if mentions(file):
                    readers.setdefault(short_names.shorten(group), []).append(kind)
    if not readers:
        return ""
    return "; it is read by " + "; ".join(f"{group}={', '.join(kinds)}" for group, kinds in readers.items())
