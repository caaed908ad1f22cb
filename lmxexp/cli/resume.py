"""``resume=RUN_DIR``: the run in that directory goes on, with the configuration that it was started with. And
``branch=RUN_DIR``: a new run starts from a checkpoint of that one, with its configuration (`lmxexp.cli.branch`).

What is typed beside either is laid on top of that configuration: values of how long, how often and where to report
may change; what the numbers so far were computed with may not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from lmxexp.cli import branch, conf
from lmxexp.cli.errors import did_you_mean, near, refuse
from lmxexp.cli.explain import hydras_own, no_such_kind
from lmxexp.cli.short_names import shorten

FIXED = ("seed", "model", "data", "tokenizer", "loss")
"""What a run's numbers depend on from its first step: a change makes it another run."""

ANEW = ("callback", "logger", "schedule")
"""Groups that may be chosen anew: their node comes from the freshly composed configuration."""


Key = Literal["resume", "branch"]
_KEYS: dict[str, Key] = {"resume": "resume", "branch": "branch", "branch.path": "branch"}


@dataclass
class Plan:
    """What to do about a command line that says ``resume=…`` or ``branch=…``."""

    key: Key
    run_dir: Path
    base: DictConfig
    """The run's own configuration, unresolved."""
    for_hydra: list[str]
    """The overrides that Hydra composes with."""
    anew: list[str] = field(default_factory=list)
    """Nodes to take from what Hydra composes."""
    values: list[Override] = field(default_factory=list)
    """Typed values, to lay on top."""
    branch: dict[str, Any] | None = None
    """The node of that name; see `lmxexp.cli.branch.origin`."""

    def for_main(self) -> list[str]:
        """The overrides that Hydra composes a command line with.

        Of a run that goes on nothing is created: neither another directory nor a second record in that one. A branch
        gets a directory, which goes by the name of the run.
        """
        if self.key == "resume":
            return [*self.for_hydra, f"hydra.run.dir={_quoted(self.run_dir)}", "hydra.output_subdir=null"]
        names = [o.value() for o in self.values if o.key_or_group == "name"]
        name = str([self.base.name, *names][-1]).replace("/", "-")
        return [*self.for_hydra, f"name={_quoted(name)}", "hydra.output_subdir=null"]

    def configuration(self, fresh: DictConfig) -> DictConfig:
        """The run's configuration with what was typed on top.

        Args:
            fresh: what Hydra composed from ``for_hydra``, complete.

        Raises:
            ConfigError: what was typed would change what the run so far was computed with, or does not exist.
        """
        cfg = self.base.copy()
        # The steps so far had its stages, whatever train.steps is from now on.
        if OmegaConf.select(cfg, "ramp.steps") is not None:
            cfg.ramp.steps = cfg.ramp.steps
        before = _leaves(cfg)
        OmegaConf.set_struct(cfg, True)
        with open_dict(cfg):
            for group in self.anew:
                cfg[group] = fresh[group]
                cfg.choice[group] = fresh.choice[group]
            cfg.resume = str(self.run_dir) if self.key == "resume" else None
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
                    f" {_show(after.get(key))}: start a new run, without {self.key}"
                    for key in changed
                ]
            )
        if self.branch is not None:
            branch.begin(cfg, self.branch, {o.key_or_group for o in self.values})
        return cfg


def plan(overrides: list[str]) -> Plan | None:
    """Sort the overrides of a command line that resumes a run or branches off one; None if it does neither.

    Hydra must be started: its search path tells groups from values.

    Raises:
        ConfigError: no run in that directory, or another kind chosen than the run's.
    """
    found = [pair for o in overrides if (pair := _directory(o)) is not None]
    if not found:
        if steps := [o for o in overrides if o.lstrip("+").startswith("branch.step=")]:
            refuse(f"{steps[0]}: say of which run, branch=RUN_DIR")
        return None
    key, text = found[-1]
    if any(other != key for other, _ in found):
        refuse(f"{key}={text}: resume goes on with a run and branch starts another: give one of them")
    run_dir = run_directory(text, key)
    base = _own_configuration(run_dir, key)
    result = Plan(key, run_dir, base, [])
    problems, step = [], None
    for text in overrides:
        if _directory(text) is not None or text.lstrip("+") in ("resume=null", "branch=null"):
            continue
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException as error:
            problems.append(f"{text}: {hydras_own(error)}")
            continue
        name = override.key_or_group
        if key == "resume" and name in ("hydra.run.dir", "hydra.output_subdir"):
            problems.append(f"{text}: resume={run_dir} goes on in that directory; leave {name} out")
        elif key == "branch" and name == "branch.step":
            step = branch.checked_step(text, override.value())
        elif key == "branch" and name == "hydra.run.dir" and Path(str(override.value())).resolve() == run_dir:
            problems.append(f"{text}: branch={run_dir} starts a new run, which needs another directory")
        elif override.is_hydra_override():
            result.for_hydra.append(text)
        elif override.is_sweep_override():
            problems.append(f"{text}: several values cannot go with {key}, which continues one run")
        elif not conf.is_group(name) or isinstance(override._value, dict):
            result.values.append(override)
        elif name in ANEW:
            result.for_hydra.append(text)
            result.anew.append(name)
        elif name == "debug":
            result.values += _values_of_debug(override)
        else:
            problems += _other_choice(override, base, run_dir, key)
    if problems:
        refuse(problems)
    if key == "branch":
        result.branch = branch.origin(base, run_dir, step)
    return result


def run_directory(text: str, key: Key = "resume") -> Path:
    """The directory of a run that can go on, or be branched off.

    Raises:
        ConfigError: there is none, or no run in it; runs of a similar name are offered.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        above = path.parent
        runs = [p.name for p in above.iterdir() if p.is_dir()] if above.is_dir() else []
        close = near(path.name, runs)
        hint = f"; did you mean {above / close}?" if close else ""
        refuse(f"{key}={text}: there is no such directory{hint}")
    missing = [name for name in ("config.yaml", "run.json") if not (path / name).is_file()]
    if missing:
        runs = sorted(str(p.parent) for p in path.glob("*/run.json"))
        hint = f"; did you mean {runs[-1]}?" if runs else "; give the directory of a run"
        refuse(f"{key}={text}: no run that could go on, it has no {' and no '.join(missing)}{hint}")
    return path.resolve()


def asks(overrides: list[str]) -> bool:
    """Whether a command line may resume a run or branch off one."""
    return any(o.lstrip("+").startswith(("resume=", "branch=", "branch.")) for o in overrides)


def _directory(override: str) -> tuple[Key, str] | None:
    """``resume`` or ``branch``, and the text after it, whatever characters it has: the directories of sweeps have ``=``
    and ``,``."""
    name, equals, value = override.partition("=")
    key = _KEYS.get(name.lstrip("+"))
    if key is None or not equals or value in ("null", ""):
        return None
    return key, value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _quoted(text: str | Path) -> str:
    """As Hydra's grammar takes any text."""
    escaped = str(text).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _own_configuration(run_dir: Path, key: Key) -> DictConfig:
    """The run's configuration with its interpolations, if it was left; what Hydra filled in comes from the record."""
    resolved = run_dir / "config.yaml"
    unresolved = run_dir / ".hydra" / "config.yaml"
    try:
        record = OmegaConf.load(resolved)
        base = OmegaConf.load(unresolved) if unresolved.is_file() else record.copy()
    except Exception as error:  # YAML's errors, bytes that are no text, no permission
        refuse(f"{key}={run_dir}: its configuration cannot be read: {' '.join(str(error).split())}")
    if not isinstance(record, DictConfig) or not isinstance(base, DictConfig):
        refuse(f"{key}={run_dir}: its configuration is not one of ours: it is no mapping")
    lost = [node for node in (*FIXED, "optim", "train", "choice", "name") if node not in record]
    if lost:
        refuse(f"{key}={run_dir}: its config.yaml is not one of ours: it has no {', '.join(lost)}")
    base.choice, base.name = record.choice, record.name
    return base


def _other_choice(override: Override, base: DictConfig, run_dir: Path, key: Key) -> list[str]:
    """A message if the kind typed is not the run's own; people repeat their command line, which is fine."""
    from lmxexp.compose import choice_key

    name = choice_key(override.get_key_element().lstrip("+~"))
    old = base.choice.get(name, base.choice.get(override.key_or_group))
    value = override.value()
    if not override.is_delete() and (value == old or (value is None and old is None)):
        return []
    return [f"{override.input_line}: {name} was {_show(old)} in {run_dir}: start a new run, without {key}"]


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
    return {k: v for key in (*FIXED, "ramp", "branch") if key in resolved for k, v in _flat(resolved[key], key).items()}


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else shorten(str(value))
