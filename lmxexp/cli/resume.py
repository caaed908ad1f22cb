"""``resume=RUN_DIR``: the run in that directory goes on, with the configuration that it was started with.

What is typed beside ``resume`` is laid on top of that configuration: values of how long, how often and where to report
may change; what the numbers so far were computed with may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lmxexp.cli import conf
from lmxexp.cli.errors import did_you_mean, near, refuse
from lmxexp.cli.explain import hydras_own, no_such_kind
from lmxexp.cli.short_names import shorten

FIXED = ("seed", "model", "data", "tokenizer", "loss")
"""What a run's numbers depend on from its first step: a change makes it another run."""

ANEW = ("callback", "logger", "schedule")
"""Groups that may be chosen anew: their node comes from the freshly composed configuration."""


@dataclass
class Plan:
    """What to do about a command line that says ``resume=…``."""

    run_dir: Path
    base: DictConfig
    """The run's own configuration, unresolved."""
    for_hydra: list[str]
    """The overrides that Hydra composes with."""
    anew: list[str] = field(default_factory=list)
    """Nodes to take from what Hydra composes."""
    values: list[Override] = field(default_factory=list)
    """Typed values, to lay on top."""

    def configuration(self, fresh: DictConfig) -> DictConfig:
        """The run's configuration with what was typed on top.

        Args:
            fresh: what Hydra composed from ``for_hydra``, complete.

        Raises:
            ConfigError: what was typed would change what the run so far was computed with, or does not exist.
        """
        cfg = self.base.copy()
        before = _leaves(cfg)
        OmegaConf.set_struct(cfg, True)
        with open_dict(cfg):
            for group in self.anew:
                cfg[group] = fresh[group]
                cfg.choice[group] = fresh.choice[group]
            cfg.resume = str(self.run_dir)
        problems = [p for override in self.values if (p := _apply(override, cfg))]
        if problems:
            refuse(problems)
        after = _leaves(cfg)
        changed = [k for k in {**before, **after} if before.get(k) != after.get(k)]
        if changed:
            typed = " ".join(o.input_line or "" for o in self.values) or " ".join(self.for_hydra)
            refuse(
                [
                    f"{typed}: {key} was {_show(before.get(key))} in {self.run_dir} and would be"
                    f" {_show(after.get(key))}: start a new run, without resume"
                    for key in changed
                ]
            )
        return cfg


def plan(overrides: list[str]) -> Plan | None:
    """Sort the overrides of a command line that resumes; None if it does not.

    Hydra must be started: its search path tells groups from values.

    Raises:
        ConfigError: no run in that directory, or another kind chosen than the run's.
    """
    directories = [value for o in overrides if (value := _directory(o)) is not None]
    if not directories:
        return None
    run_dir = run_directory(directories[-1])
    base = _own_configuration(run_dir)
    result = Plan(run_dir, base, [])
    problems = []
    for text in overrides:
        if _directory(text) is not None or text.lstrip("+") == "resume=null":
            continue
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException as error:
            problems.append(f"{text}: {hydras_own(error)}")
            continue
        key = override.key_or_group
        if key in ("hydra.run.dir", "hydra.output_subdir"):
            problems.append(f"{text}: resume={run_dir} goes on in that directory; leave {key} out")
        elif override.is_hydra_override():
            result.for_hydra.append(text)
        elif override.is_sweep_override():
            problems.append(f"{text}: several values cannot go with resume, which continues one run")
        elif not conf.is_group(key) or isinstance(override._value, dict):
            result.values.append(override)
        elif key in ANEW:
            result.for_hydra.append(text)
            result.anew.append(key)
        elif key == "debug":
            result.values += _values_of_debug(override)
        else:
            problems += _other_choice(override, base, run_dir)
    if problems:
        refuse(problems)
    return result


def run_directory(text: str) -> Path:
    """The directory of a run that can go on.

    Raises:
        ConfigError: there is none, or no run in it; runs of a similar name are offered.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        above = path.parent
        runs = [p.name for p in above.iterdir() if p.is_dir()] if above.is_dir() else []
        close = near(path.name, runs)
        hint = f"; did you mean {above / close}?" if close else ""
        refuse(f"resume={text}: there is no such directory{hint}")
    missing = [name for name in ("config.yaml", "run.json") if not (path / name).is_file()]
    if missing:
        runs = sorted(str(p.parent) for p in path.glob("*/run.json"))
        hint = f"; did you mean {runs[-1]}?" if runs else "; give the directory of a run"
        refuse(f"resume={text}: no run that could go on, it has no {' and no '.join(missing)}{hint}")
    return path.resolve()


def _directory(override: str) -> str | None:
    """The text after ``resume=``, whatever characters it has: the directories of sweeps have ``=`` and ``,``."""
    key, equals, value = override.partition("=")
    if key.lstrip("+") != "resume" or not equals or value in ("null", ""):
        return None
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _own_configuration(run_dir: Path) -> DictConfig:
    """The run's configuration with its interpolations, if it was left; what Hydra filled in comes from the record."""
    resolved = run_dir / "config.yaml"
    unresolved = run_dir / ".hydra" / "config.yaml"
    try:
        record = OmegaConf.load(resolved)
        base = OmegaConf.load(unresolved) if unresolved.is_file() else record.copy()
    except Exception as error:  # YAML's errors, bytes that are no text, no permission
        refuse(f"resume={run_dir}: its configuration cannot be read: {' '.join(str(error).split())}")
    if not isinstance(record, DictConfig) or not isinstance(base, DictConfig):
        refuse(f"resume={run_dir}: its configuration is not one of ours: it is no mapping")
    lost = [key for key in (*FIXED, "optim", "train", "choice", "name") if key not in record]
    if lost:
        refuse(f"resume={run_dir}: its config.yaml is not one of ours: it has no {', '.join(lost)}")
    base.choice, base.name = record.choice, record.name
    return base


def _other_choice(override: Override, base: DictConfig, run_dir: Path) -> list[str]:
    """A message if the kind typed is not the run's own; people repeat their command line, which is fine."""
    from lmxexp.compose import choice_key

    name = choice_key(override.get_key_element().lstrip("+~"))
    old = base.choice.get(name, base.choice.get(override.key_or_group))
    value = override.value()
    if not override.is_delete() and (value == old or (value is None and old is None)):
        return []
    return [f"{override.input_line}: {name} was {_show(old)} in {run_dir}: start a new run, without resume"]


def _values_of_debug(override: Override) -> list[Override]:
    """What ``debug=KIND`` sets, one value at a time: it writes all over the configuration."""
    loader: Any = GlobalHydra.instance().config_loader()
    kinds = [k for k in loader.get_group_options("debug") if not k.startswith("_")]
    kind = override.value()
    if kind not in kinds:
        refuse(f"debug={kind}: {no_such_kind(str(kind), 'debug', kinds)}")
    loaded = loader.repository.load_config(f"debug/{kind}")
    package = loaded.header.get("package")
    content = loaded.config if package == "_global_" else {"debug": loaded.config}
    lines = [f"{key}={_show(value)}" for key, value in _flat(OmegaConf.create(content)).items()]
    return OverridesParser.create().parse_overrides(lines)


def _apply(override: Override, cfg: DictConfig) -> str | None:
    """Lay one typed value on top; a message if it has no place."""
    key, line = override.key_or_group, override.input_line or ""
    try:
        if override.is_delete():
            above, _, last = key.rpartition(".")
            node = OmegaConf.select(cfg, above) if above else cfg
            with open_dict(cfg):
                del node[last]
        else:
            added = override.is_add() or override.is_force_add()
            OmegaConf.update(cfg, key, override.value(), force_add=added)
    except (OmegaConfBaseException, KeyError, TypeError):
        known = _flat(cfg)
        return f"{line}: no such key in the run's configuration{did_you_mean(key, known)}"
    return None


def _flat(node: Any, below: str = "") -> dict[str, Any]:
    """Every leaf by its dotted key, unresolved."""
    plain = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    if not isinstance(plain, dict) or not plain:
        return {below: plain}
    return {k: v for key, value in plain.items() for k, v in _flat(value, f"{below}.{key}".lstrip(".")).items()}


def _leaves(cfg: DictConfig) -> dict[str, Any]:
    """Every resolved value of what must not change."""
    try:
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        refuse(f"the run's configuration does not resolve: {str(error).splitlines()[0]}")
    assert isinstance(resolved, dict)
    return {k: v for key in FIXED if key in resolved for k, v in _flat(resolved[key], key).items()}


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else shorten(str(value))
