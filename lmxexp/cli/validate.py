"""Checks a configuration before anything is built, and says all that is wrong with it at once.

The signature of what a ``_target_`` names is the schema: names, types and what is mandatory. So a user's own class is
checked as ours are, with no second description of its settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError

from lmxexp.cli import conf, ignored
from lmxexp.cli.errors import did_you_mean, refuse
from lmxexp.cli.read_settings import PLAIN, ROOTS, ReadSettings
from lmxexp.cli.signature import Built, fits, locate, parameters, reason, say, takes_text
from lmxexp.compose import LISTS

_HYDRA_KEYS = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")

_OPTIONAL = (*LISTS, "ramp")
"""Absent in runs from before there was such a group."""


def check(cfg: DictConfig, overrides: Iterable[str] = (), *, also: tuple[str, ...] = ()) -> None:
    """Refuse a configuration that cannot work.

    Args:
        cfg: composed and unresolved.
        overrides: what the user asked for; a setting among them that nothing reads is refused too.
        also: nodes that are read beside those of a run.

    Raises:
        ConfigError: all the mistakes: unknown settings, wrong types, missing values, targets that cannot be imported,
            interpolations that point nowhere, settings that would be ignored.
    """
    read = ReadSettings(cfg, (*ROOTS, *PLAIN, *also))
    # One mistake of the user's reaches many nodes: it is told once, under the key where it is written.
    problems: dict[str, str] = {}
    for key in ("seed", *ROOTS):
        if OmegaConf.select(cfg, key, throw_on_missing=False) is None and key not in _OPTIONAL:
            problems.setdefault(key, f"{key} is missing: the run cannot do without it")
    _check_plain(cfg, problems)
    for path in read.targets:
        _check_node(cfg, path, read, problems)
    for key, message in ignored.find(cfg, list(overrides), read):
        problems.setdefault(key, message)
    if problems:
        refuse(list(problems.values()))


_MENDS = {
    ("train.batch_size", "auto"): "; train.n_micro=auto computes a batch in as few parts as fit into memory",
}
"""What one may have meant by a value that does not fit."""


def _check_plain(cfg: DictConfig, problems: dict[str, str]) -> None:
    types = {"seed": int, "tags": list[str], "resume": str | None}
    for key in PLAIN:
        value = OmegaConf.select(cfg, key, throw_on_missing=False)
        plain = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
        if key in types and key in cfg and key not in problems and not fits(plain, types[key]):
            problems[key] = _expected(key, plain, types[key])


def _check_node(cfg: DictConfig, path: str, read: ReadSettings, problems: dict[str, str]) -> None:
    node = OmegaConf.select(cfg, path)
    assert isinstance(node, DictConfig)
    name = node._target_
    try:
        target = locate(name)
    except Exception as error:  # whatever the user's module raises when it is imported
        problems[f"{path}._target_"] = f"{path}._target_={name}: cannot be imported: {reason(error)}"
        return
    try:
        named, takes_any = parameters(target)
    except (TypeError, ValueError):
        return
    for key in node:
        if key in _HYDRA_KEYS:
            continue
        full = f"{path}.{key}"
        if key not in named:
            if not takes_any:
                settings = ", ".join(named) or "no settings"
                hint = did_you_mean(str(key), named) or f"; it takes {settings}"
                problems.setdefault(full, f"{full}: {name} has no setting {key}{hint}")
            continue
        _check_value(cfg, full, named[str(key)].annotation, read, problems)
    if not node.get("_partial_", False) and not node.get("_args_"):
        for key, parameter in named.items():
            if parameter.default is parameter.empty and key not in node:
                problems.setdefault(f"{path}.{key}", f"{path}.{key} is missing: {name} needs it")


def _check_value(cfg: DictConfig, path: str, annotation: Any, read: ReadSettings, problems: dict[str, str]) -> None:
    source = read.source(path)
    if source in problems:
        return
    via = "" if source == path else f" (read by {path})"
    if read.raw(source) == "???":
        problems[source] = f"{source} is missing: give it a value, {source}=…{via}"
        return
    try:
        value = OmegaConf.select(cfg, path)
    except InterpolationKeyError:
        problems[source] = f"{source} is missing{via}"
        return
    except Exception as error:
        problems[source] = f"{source}={read.raw(source)}: {str(error).splitlines()[0]}{via}"
        return
    plain = _plain(value)
    if not fits(plain, annotation):
        if isinstance(plain, Built):
            problems[source] = f"{source}: expected {say(annotation)}, got a node with _target_{via}"
        else:
            problems[source] = f"{_expected(source, plain, annotation)}{via}"
            problems[source] += _MENDS.get((source, plain), "") if isinstance(plain, str) else ""
            group = source.replace(".", "/")
            if isinstance(plain, str) and conf.is_group(group):  # model.attention=gqa
                problems[source] += f"; a kind is chosen with a slash: {group}={plain}"


def _expected(key: str, value: Any, annotation: Any) -> str:
    same = isinstance(value, list) or (isinstance(value, str) and takes_text(annotation))
    got = "" if same else f", got {_kind(value)}"
    return f"{key}={_show(value)}: expected {say(annotation)}{got}"


def _kind(value: Any) -> str:
    return {str: "text", dict: "a mapping", type(None): "null"}.get(type(value), type(value).__name__)


def _plain(value: Any) -> Any:
    """Containers as Python's own, with a node that has a ``_target_`` as `Built`."""
    if isinstance(value, DictConfig):
        if value._is_none():
            return None
        return Built() if "_target_" in value else {k: _plain(value.get(k)) for k in value}
    if isinstance(value, ListConfig):
        return None if value._is_none() else [_plain(v) for v in value]
    return value


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
