"""Says what is wrong with an override in the user's terms.

Hydra stops at the first override that it cannot take, and calls a misspelt group a missing key. So when it refuses,
each override is looked at again, and what was probably meant is offered.
"""

from __future__ import annotations

import re
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmxexp.cli import conf
from lmxexp.cli.errors import did_you_mean, near
from lmxexp.cli.short_names import PARENT, short_names, shorten
from lmxexp.compose import LISTS

_EXTRAS = {
    "hydra/launcher": {
        "joblib": "joblib",
        "submitit_local": "submitit",
        "submitit_slurm": "submitit",
        "ray": "ray",
        "ray_aws": "ray",
    },
    "hydra/sweeper": {"optuna": "optuna"},
}
"""Kinds that published plugins of Hydra bring, and the extra that installs each."""


def explain(
    error: BaseException,
    overrides: list[str],
    loader: ConfigLoader,
    *,
    config_name: str = "config",
    multirun: bool = False,
) -> list[str]:
    """One line for each override that cannot work; what Hydra said where none is found, if it was Hydra."""
    if missing := _missing_plugins(error, overrides, loader):
        return missing  # without them nothing can be composed that would show what else there is
    values: list[Override] = []
    choices: list[Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except OverrideParseException as refused:
            problems.append(_syntax(text, refused))
            continue
        if override.is_sweep_override() and not multirun:
            problems.append(_several(override))
        elif _is_group(override.key_or_group, loader) and not isinstance(override._value, dict):
            bad = _unknown_kinds(override, loader)
            problems += bad
            if not bad:
                choices.append(override)
        else:
            values.append(override)
    choices, not_chosen = _split_choices(choices, loader, config_name)
    problems += not_chosen
    cfg = _compose([shorten(c.input_line or "") for c in choices if not c.is_sweep_override()], loader, config_name)
    problems += [p for o in values if (p := _unknown_key(o, cfg, loader))]
    return problems or ([hydras_own(error)] if isinstance(error, HydraException) else [])


def hydras_own(error: BaseException) -> str:
    """Hydra's message in one line, without the search path and its links."""
    lines = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
    text = "\n".join(lines).partition("\nConfig search path:")[0]
    keep = (line.strip() for line in text.splitlines())
    skip = ("full_key:", "object_type=", "reference_type=", "See https://hydra.cc", "Set the environment variable")
    return " ".join(line for line in keep if line and not line.startswith(skip)) or type(error).__name__


def known_groups(loader: ConfigLoader, below: str = "") -> list[str]:
    """Every group, long names."""
    found = []
    for name in loader.get_group_options(below, ObjectType.GROUP):
        group = f"{below}/{name}" if below else name
        if group == "hydra" or name.startswith("__"):
            continue
        found += [group, *known_groups(loader, group)]
    return found


def _syntax(text: str, error: OverrideParseException) -> str:
    if "=" not in text and not text.startswith("~"):
        return f"{text}: an override is written key=value"
    reason = str(error).splitlines()[0].removeprefix(f"Error parsing override '{text}'").strip()
    key, _, value = text.partition("=")
    return f"{text}: not a value that can be read ({reason or 'syntax'}); quote a text: \"{key}='{value}'\""


def _several(override: Override) -> str:
    line = override.input_line or ""
    key, _, value = line.partition("=")
    return f"{line}: several values need --multirun (-m); a list is written {key}=[{value}], a text {key}=\\'{value}\\'"


def _missing_plugins(error: BaseException, overrides: list[str], loader: ConfigLoader) -> list[str]:
    """How to install the plugins that were chosen and are not there, on the command line or in a file of defaults."""
    chosen = [tuple(text.partition("=")[::2]) for text in overrides]
    chosen += re.findall(r"Could not find '(hydra/\w+)/(\w+)'", str(error))
    return [
        f"{group}={kind} needs a plugin of Hydra that is not installed: pip install 'lmxexp[{_EXTRAS[group][kind]}]'"
        for group, kind in dict.fromkeys(chosen)
        if kind in _EXTRAS.get(group, ()) and kind not in loader.get_group_options(group)
    ]


def _is_group(key: str, loader: ConfigLoader) -> bool:
    return bool(loader.get_group_options(key, None))


def _unknown_kinds(override: Override, loader: ConfigLoader) -> list[str]:
    """Kinds named that the group does not have."""
    group = override.key_or_group
    known = [k for k in loader.get_group_options(group) if not k.startswith("_")]
    shown = shorten(override.get_key_element()).lstrip("+~")
    if override.is_delete() or isinstance(override._value, Glob):
        return []
    below = group.startswith(f"{PARENT}/")
    if below and "." in override.get_key_element().partition("@")[2].removeprefix(PARENT + "."):
        # softcap@score_softcap.cap=10
        value = override.get_value_element_as_str()
        key = f"{PARENT}.{(override.package or '').removeprefix(PARENT + '.')}"
        return [f"{override.input_line}: a setting is written with dots alone: {key}={value}"]
    if override.is_sweep_override():
        wanted: list[Any] = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    else:
        value = override.value()
        wanted = value if isinstance(value, list) else [value]
    return [
        f"{shown}={kind}: {no_such_kind(str(kind), shorten(group), known)}"
        for kind in wanted
        # `null` is no choice; a sweep over lists gives them as text.
        if kind not in (None, "null") and str(kind) not in known and not str(kind).startswith("[")
    ]


def no_such_kind(kind: str, group: str, known: list[str]) -> str:
    """``no such kind; did you mean gqa? attention has: gqa, mha``."""
    hint = did_you_mean(kind, known)
    return f"no such kind{hint + ' ' if hint else '; '}{group} has: {', '.join(known) or 'no kinds'}"


def _split_choices(choices: list[Override], loader: ConfigLoader, config_name: str) -> tuple[list[Override], list[str]]:
    """Choices that the defaults have a place for, and messages for the others."""
    good, problems = [], []
    # What there is to choose below `model` depends on the model.
    for below in (False, True):
        lines = [o.input_line or "" for o in good if not o.is_sweep_override()]
        known = _known_choices(lines, loader, config_name)
        for override in choices:
            key = override.get_key_element().lstrip("+~")
            if ("/" in key) is not below:
                continue
            # Groups of several kinds do not show among Hydra's choices.
            if not known or key in known or override.is_add() or override.key_or_group in LISTS:
                good.append(override)
            else:
                problems.append(_no_place(override, key, known))
    return good, problems


def _no_place(override: Override, key: str, known: dict[str, Any]) -> str:
    """A message for a choice of a group that is nowhere in the defaults under this name."""
    line = override.input_line or ""
    if "/" not in key:
        return f"{line}: the defaults have no {key} to choose; add it with +{line}"
    model = f"model={known.get('model')}"
    same = sorted(shorten(k) for k in known if k.partition("@")[0] == override.key_or_group)
    if not same:
        return f"{line}: {model} has no {shorten(key)} to choose"
    _, equals, kind = line.partition("=")
    return f"{line}: {model} has {shorten(key)} in another place: say " + " or ".join(
        f"{k}{equals}{kind}" for k in same
    )


def _known_choices(overrides: list[str], loader: ConfigLoader, config_name: str) -> dict[str, Any]:
    try:
        defaults = loader.compute_defaults_list(config_name, overrides, RunMode.MULTIRUN)
    except HydraException:
        return {}
    return dict(defaults.overrides.known_choices)  # pyright: ignore[reportAttributeAccessIssue]


def _compose(overrides: list[str], loader: ConfigLoader, config_name: str) -> DictConfig | None:
    try:
        return loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
    except HydraException:
        return None


def _unknown_key(override: Override, cfg: DictConfig | None, loader: ConfigLoader) -> str | None:
    line, key = override.input_line or "", override.key_or_group
    if override.is_force_add() or (cfg is None and "." in key):
        return None
    if conf.is_group(key):  # only a mapping gets here
        return f"{line}: {shorten(key)} is a group: choose a kind, or set one key, {shorten(key)}.KEY=VALUE"
    if override.package is not None or "/" in key:
        groups = [shorten(g) for g in known_groups(loader)]
        return f"{line}: no such group{did_you_mean(shorten(key), groups)}"
    if override.is_add():
        exists = cfg is not None and OmegaConf.select(cfg, key, throw_on_missing=False) is not None
        if exists and not isinstance(override._value, dict | list):
            return f"{line}: {shorten(key)} is there already; write {line.lstrip('+')}"
        return None
    node: Any = cfg
    parts = key.split(".")
    for i, part in enumerate(parts):
        names = [str(k) for k in node] if isinstance(node, DictConfig) and not node._is_none() else []
        if isinstance(node, ListConfig):
            return None
        if part not in names:
            return f"{line}: {_no_such(parts, i, names, cfg, loader)}"
        try:
            node = OmegaConf.select(node, part, throw_on_missing=False)
        except OmegaConfBaseException:  # an interpolation that only a run can resolve
            return None
    return None


def _no_such(parts: list[str], i: int, names: list[str], cfg: DictConfig | None, loader: ConfigLoader) -> str:
    """Which part of a dotted key does not exist, and the name that was likely meant."""
    if i == 0:
        elsewhere = sorted(_places(cfg, parts[0]), key=lambda p: (p.count("."), len(p)))
        if elsewhere:  # n_heads=4
            return f"no such group or key; did you mean {shorten('.'.join([elsewhere[0], *parts[1:]]))}?"
        groups = [*short_names(), *(g for g in known_groups(loader) if "/" not in g)]
        close = near(parts[0], [*groups, *names])
        if close == parts[0]:  # callback=[] callback.sample.every=5
            return f"no kind of {close} is chosen here that has it"
        if close is not None:
            what = "group" if close in groups and len(parts) == 1 else "key"
            return f"no such {what}; did you mean {'.'.join([close, *parts[1:]])}?"
        return "no such group or key"
    above = ".".join(parts[:i])
    settings = [name for name in names if not name.startswith("_")]
    close = near(parts[i], names if parts[i].startswith("_") else settings)
    if close is not None:
        return f"no such key; did you mean {shorten(f'{above}.{close}')}?"
    if not settings:  # ramp=none ramp.start=2
        return f"no such key; what is chosen as {shorten(above)} here has no settings"
    return f"no such key; {above} has: {', '.join(settings)}"


def _places(cfg: DictConfig | None, name: str, below: str = "") -> list[str]:
    """Dotted keys that end in ``name``."""
    found = []
    for key in cfg or ():
        path = f"{below}.{key}" if below else str(key)
        node = cfg._get_node(key) if cfg is not None else None
        if key == name:
            found.append(path)
        if isinstance(node, DictConfig) and path != "hydra" and not node._is_none() and not node._is_interpolation():
            found += _places(node, name, path)
    return found
