"""Tuned arms: every arm gets the same bracket of values for one setting, and so the same number of trials."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from lmxexp.cli import short_names
from lmxexp.cli.errors import refuse
from lmxexp.cli.read_settings import ReadSettings


@dataclass(frozen=True)
class Tune:
    """The node ``tune``, checked.

    Args:
        key: the setting, short form or long: ``optim.learning_rate``; None: nothing is tuned.
        values: what it takes; None: a bracket around the configured value.
        trials: values of that bracket.
        factor: from one of them to the next.

    Raises:
        ConfigError: too few values, values that are not positive or stand twice, a factor that does not spread them.
    """

    key: str | None = None
    values: list[float] | None = None
    trials: int = 5
    factor: float = 3.0

    def __post_init__(self) -> None:
        if self.key is None and self.values is not None:
            refuse(
                f"tune.values={_listed(self.values)} would be ignored: name the setting, tune.key=optim.learning_rate"
            )
        if self.trials < 2:
            refuse(f"tune.trials={self.trials} must be at least 2; an optimum shows from 3 on")
        if not (self.factor > 1 and math.isfinite(self.factor)):
            refuse(f"tune.factor={self.factor} must be above 1: each value is so many times the one before")
        if self.values is not None:
            if len(self.values) < 2 or len(set(self.values)) < len(self.values):
                refuse(f"tune.values={_listed(self.values)} must be at least 2 different values")
            if not all(_positive(value) for value in self.values):
                refuse(f"tune.values={_listed(self.values)} must be positive numbers")


def bracket(tune: Tune, cfg: DictConfig) -> list[float]:
    """The values that every arm is tried at, ascending.

    Without ``tune.values`` they are spaced by ``tune.factor`` around the value configured in the first arm, rounded to
    three significant digits. They are the same for all arms, whatever their own YAML says.

    Args:
        tune: with a key.
        cfg: of the first arm, composed and unresolved.

    Raises:
        ConfigError: a key that is not there, that nothing in the run reads, or that is no positive number.
    """
    assert tune.key is not None
    key = short_names.expand(tune.key)
    if "/" in key or not _exists(cfg, key):
        what = "a group of kinds" if "/" in key else "not in the configuration"
        refuse(f"tune.key={tune.key} is {what}: name a setting that holds a number, such as optim.learning_rate")
    if not ReadSettings(cfg).is_read(key):
        refuse(f"tune.key={tune.key}: nothing in this run reads it, so tuning it would change nothing; name another")
    if tune.values is not None:
        return sorted(tune.values)
    configured = OmegaConf.select(cfg, key, throw_on_missing=False)
    whole = isinstance(configured, int) and not isinstance(configured, bool)
    if not _positive(configured) or (whole and not key.endswith("learning_rate")):
        kind = "a whole number" if whole else "no positive number"
        shown = "a mapping" if isinstance(configured, DictConfig) else _shown(configured)
        refuse(f"tune.key={tune.key} is {shown}, {kind}, which no factor can spread: give tune.values=[…]")
    middle = (tune.trials - 1) / 2
    values = [_rounded(configured * tune.factor ** (i - middle)) for i in range(tune.trials)]
    if len(set(values)) < len(values):
        refuse(f"tune.factor={tune.factor} puts values together that are equal in three digits: use a larger one")
    return values


def expand(points: Sequence[Sequence[str]], tune: Tune, values: Sequence[float]) -> list[list[str]]:
    """Every point at every value: the override is added to its own.

    Args:
        points: overrides of each.
        values: from `bracket`.

    Raises:
        ConfigError: a point that sets the key itself.
    """
    assert tune.key is not None
    for point in points:
        for override in point:
            if _sets(override, short_names.expand(tune.key)):
                refuse(
                    f"{override}: tune.key={tune.key} gives every arm the same values of it, so no point can set it; "
                    "leave it out, or give the values: tune.values=[…]"
                )
    return [[*point, f"{tune.key}={value!r}"] for point in points for value in values]


def left_behind(key: str, cfg: DictConfig) -> dict[str, float]:
    """Of a tuned learning rate, those of the optimizers inside, which keep their number whatever it becomes.

    Args:
        key: that is tuned.
        cfg: of one point, composed and unresolved.

    Returns:
        By their keys; nothing where the two are one number, or the key is no learning rate.
    """
    parent, _, last = short_names.expand(key).rpartition(".")
    node = OmegaConf.select(cfg, parent) if last == "learning_rate" else None
    return dict(_inner_rates(node, parent)) if isinstance(node, DictConfig) else {}


def _inner_rates(node: DictConfig, key: str) -> Iterator[tuple[str, float]]:
    for name in map(str, node):
        if OmegaConf.is_interpolation(node, name) or not isinstance(inner := node[name], DictConfig):
            continue
        if not OmegaConf.is_interpolation(inner, "learning_rate") and _positive(rate := inner.get("learning_rate")):
            yield f"{key}.{name}.learning_rate", rate
        yield from _inner_rates(inner, f"{key}.{name}")


def _sets(override: str, key: str) -> bool:
    """``optim={learning_rate: 1}`` sets optim.learning_rate too."""
    own, _, text = short_names.expand(override).lstrip("+~").partition("=")
    if own == key or not key.startswith(f"{own}.") or "{" not in text:
        return own == key
    from hydra.core.override_parser.overrides_parser import OverridesParser

    value = OverridesParser.create().parse_overrides([override])[0].value()
    for part in key.removeprefix(f"{own}.").split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _exists(cfg: DictConfig, key: str) -> bool:
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent, throw_on_missing=False) if parent else cfg
    return isinstance(node, DictConfig) and last in node


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _listed(values: Sequence[object]) -> str:
    return f"[{','.join(map(str, values))}]"
