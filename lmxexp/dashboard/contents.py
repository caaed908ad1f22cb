"""What a sweep's workspace depends on: where its runs went, under which group, and what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmxexp.cli.errors import refuse
from lmxexp.logger.wandb_start import NAME_LENGTH

if TYPE_CHECKING:
    from lmxexp.compare.read import Run

_SEEDS = ("seed", "data.seed")


@dataclass(frozen=True)
class Varied:
    """A setting that differs between the points."""

    key: str
    """In the configuration of the runs at W&B: ``choices.attention``, ``optim.learning_rate``."""
    label: str
    """The word that sets it."""
    grouped: bool
    """Whether it separates the curves. Seeds do not, they make the band; nor does what ``match`` solved for, which
    follows from the rest; nor a number that no two points share."""
    log: bool
    """Whether its values are positive numbers over a decade or more."""


@dataclass(frozen=True)
class Contents:
    """A sweep, as far as its workspace is concerned."""

    name: str
    project: str
    entity: str | None
    """None: the account's default."""
    groups: list[str]
    """What the runs have as ``group``: the sweep's name, unless ``logger.wandb.group`` says otherwise."""
    varied: list[Varied]
    n_points: int

    @property
    def grouped(self) -> list[Varied]:
        return [v for v in self.varied if v.grouped]

    @property
    def only_seeds(self) -> bool:
        return all(v.key in _SEEDS for v in self.varied)


def read(directory: Path, project: str | None = None, entity: str | None = None) -> Contents:
    """Read a sweep's directory.

    Args:
        directory: of the sweep; ``sweep.json`` is in it.
        project, entity: None: those that its runs were logged to.

    Raises:
        ConfigError: it is no sweep; no point has started; its runs are not at W&B, or in several projects.
    """
    from lmxexp.compare.read import find_runs, read_sweep

    sweep = read_sweep(directory)
    if sweep is None:
        where = "has no sweep.json" if directory.is_dir() else "is no directory"
        refuse(f"{directory} {where}: give the directory of a sweep, such as outputs/sweeps/NAME")
    runs = [run for run in find_runs([directory]) if run.point is not None]
    started = [run for run in runs if run.config]
    if not started:
        refuse(f"{directory}: no point has started yet; there is nothing to show before the first one has")
    loggers = [_wandb_logger(run) for run in started]
    there = [logger for logger in loggers if logger is not None]
    if not there and project is None:
        refuse(
            f"{directory}: its runs were not logged to W&B: sweep with wandb among the loggers "
            f"(logger=[console,jsonl,wandb], logger.wandb.mode=auto), or say by --project where they are"
        )
    return Contents(
        name=sweep.name,
        project=project or _one("project", [str(logger["project"]) for logger in there], directory),
        entity=entity or _one("entity", [logger.get("entity") for logger in there], directory),
        groups=_unique(str(logger.get("group") or sweep.name)[:NAME_LENGTH] for logger in there or [{}]),
        varied=_varied(runs, {key for run in started for key in run.choices}),
        n_points=len(runs),
    )


def _wandb_logger(run: Run) -> dict[str, Any] | None:
    """Its settings of W&B, None if it was not logged there."""
    node = (run.config.get("logger") or {}).get("wandb")
    return node if isinstance(node, dict) and node.get("mode") != "disabled" else None


def _one(name: str, values: Sequence[Any], directory: Path) -> Any:
    found = _unique(values)
    if len(found) > 1:
        refuse(
            f"{directory}: its runs are in several places ({name} {', '.join(map(str, found))}), and a workspace shows "
            f"one: choose by --{name}"
        )
    return found[0] if found else None


def _varied(runs: Sequence[Run], choices: set[str]) -> list[Varied]:
    values: dict[str, list[str | None]] = {}
    for at, run in enumerate(runs):
        assert run.point is not None
        pairs = [text.lstrip("+").partition("=")[::2] for text in run.point.get("overrides") or []]
        for key, value in [*pairs, *((k, str(v)) for k, v in run.adjusted.items())]:
            values.setdefault(key, [None] * len(runs))[at] = value
    follow = {*_SEEDS, *(key for run in runs for key in run.adjusted)}
    return [_describe(key, texts, choices, key in follow) for key, texts in values.items()]


def _describe(key: str, texts: Sequence[str | None], choices: set[str], follows: bool) -> Varied:
    choice = _choice(key, choices)
    recurs = len(_unique(texts)) < len(texts)
    numbers = _numbers(texts)
    return Varied(
        key=f"choices.{choice}" if choice else key,
        label=key,
        grouped=not follows and (choice is not None or recurs),
        log=len(numbers) > 1 and min(numbers) > 0 and max(numbers) >= 10 * min(numbers) and key not in _SEEDS,
    )


def _choice(key: str, choices: set[str]) -> str | None:
    """The name under which a group's choice is recorded, None where ``key`` is a setting."""
    if key in choices:
        return key
    if "/" in key or "@" in key:  # the long form
        from lmxexp.compose import choice_key

        return choice_key(key)
    return None


def _numbers(texts: Sequence[str | None]) -> list[float]:
    """The values, if all of them are numbers."""
    try:
        return [float(text) for text in texts if text is not None]
    except ValueError:
        return []


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
