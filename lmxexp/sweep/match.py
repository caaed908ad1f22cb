"""Equal budgets: every arm of a sweep is adjusted, before it runs, until it uses as much as the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lmxexp.cli.errors import is_config_error, refuse
from lmxexp.cli.explain import hydras_own
from lmxexp.cli.short_names import expand
from lmxexp.sweep.adjust import FITTING, KEYS, Adjuster
from lmxexp.sweep.budget import Budgets, same_budget

_SEEDS = ("seed", "data.seed")
"""They change no budget."""


@dataclass(frozen=True)
class Match:
    """``conf/match/*.yaml``, checked. Meanings stand there.

    Raises:
        ConfigError: an unknown budget, an adjustment that does not fit it, or a tolerance out of range.
    """

    kind: Literal["params", "flops", "tokens", "time", "memory"]
    adjust: Literal["steps", "d_ff", "d_model"]
    reference: str | list[str] | None = None
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in FITTING:
            refuse(f"match.kind={self.kind}: expected one of {', '.join(FITTING)}")
        if self.adjust not in FITTING[self.kind]:
            others = ", ".join(FITTING[self.kind])
            refuse(f"match.adjust={self.adjust} does not fit match={self.kind}, which adjusts: {others}")
        if not 0 < self.tolerance < 1:
            refuse(f"match.tolerance={self.tolerance} must be above 0 and below 1: 0.01 is one percent")

    @property
    def overrides(self) -> list[str]:
        """The reference's, as a list."""
        return [self.reference] if isinstance(self.reference, str) else list(self.reference or [])

    @property
    def record(self) -> dict[str, Any]:
        """As it stands in ``sweep.json``."""
        reference = None if self.reference is None else self.overrides
        return {"kind": self.kind, "reference": reference, "adjust": self.adjust, "tolerance": self.tolerance}

    def with_reference(self, lines: Sequence[Sequence[str]]) -> Match:
        """The same with the reference spelled out: where it is null, the first point's choice of whatever differs.

        Seeds, and numbers of optimizer and schedule, are left out: they change no budget.

        Args:
            lines: the overrides of all points of the sweep.

        Raises:
            ConfigError: a reference that sets what is adjusted, or overrides that are none.
        """
        overrides = self.overrides if self.reference is not None else self._first(lines)
        for override in overrides:
            if "=" not in override:
                refuse(f"match.reference={override}: expected overrides such as attention=mha")
            if key_of(override) in self.adjusted_keys:
                text = f"match.reference={override}" if self.reference is not None else f"the first point's {override}"
                refuse(
                    f"{text} cannot be the reference: match.adjust={self.adjust} changes it in every other arm; "
                    "name one that leaves it alone, such as match.reference='attention=mha'"
                )
        return replace(self, reference=overrides)

    @property
    def adjusted_keys(self) -> tuple[str, ...]:
        """What may be changed: with ``d_model`` the rest is made up for by ``d_ff``."""
        return (KEYS["d_model"], KEYS["d_ff"]) if self.adjust == "d_model" else (KEYS[self.adjust],)

    def _first(self, lines: Sequence[Sequence[str]]) -> list[str]:
        first, *_ = by_key = [{key_of(o): o for o in line} for line in lines] or [{}]
        differing = [key for key in _differing(by_key) if not key.startswith(("optim.", "param_groups.", "schedule."))]
        if missing := [key for key in differing if key not in first]:
            refuse(f"match.reference is null, and the first point does not set {missing[0]}: name the reference")
        return [first[key] for key in differing]


@dataclass(frozen=True)
class Candidate:
    """One composed point."""

    overrides: tuple[str, ...]
    """Short form, all of the point's: ``("attention=gqa", "seed=1", "train.steps=50")``."""
    cfg: DictConfig
    """Complete, unresolved, without ``hydra``."""


@dataclass(frozen=True)
class Solution:
    """What makes a point meet the budget."""

    adjusted: dict[str, int]
    """``{"model.d_ff": 352}``; empty where the point meets it as it is, as the reference does."""
    budget: dict[str, Any]
    """``kind``, ``target``, ``value`` and ``residual``, which is value / target - 1."""


def solve(
    match: Match, candidates: Sequence[Candidate], compose: Callable[[Sequence[str]], DictConfig]
) -> list[Solution]:
    """Adjust each point so that it uses as much of the budget as its reference.

    The reference of a point is the point with the reference's overrides in place of its own for the same keys. Points
    that differ in their seeds alone are solved once.

    Args:
        match: what is matched; with a null reference the first candidate is the reference, see `Match.with_reference`.
        candidates: configurations that passed `lmxexp.cli.validate.check`.
        compose: makes the configuration of a reference that is no candidate.

    Returns:
        One for each candidate, in their order.

    Raises:
        ConfigError: all arms that cannot meet the budget, each with the reason.
    """
    match = match.with_reference([c.overrides for c in candidates])
    solver = _Solver(match, candidates, compose)
    solutions: dict[tuple[str, str], Solution | None] = {}
    problems: dict[str, None] = {}
    result = []
    for candidate in candidates:
        arm = solver.label(candidate)
        try:
            reference = solver.reference(candidate)
            pair = same_budget(candidate.cfg, match.kind), same_budget(reference, match.kind)
            if pair not in solutions:
                solutions[pair] = None  # a problem is told once
                solutions[pair] = solver.solve(candidate, reference)
            result.append(solutions[pair])
        except Exception as error:
            if not is_config_error(error):
                raise
            problems.setdefault(f"{arm}: {error}" if arm else str(error))
    if problems:
        refuse(list(problems))
    return result


@dataclass
class _Solver:
    match: Match
    candidates: Sequence[Candidate]
    compose: Callable[[Sequence[str]], DictConfig]
    references: dict[frozenset[str], DictConfig] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.budgets = Budgets(self.match.kind)
        self.adjuster = Adjuster(self.budgets, self.match.adjust, self.match.tolerance)
        self.differing = _differing([{key_of(o): o for o in c.overrides} for c in self.candidates])
        for candidate in self.candidates:
            self.references.setdefault(_but_seeds(candidate.overrides), candidate.cfg)

    def label(self, candidate: Candidate) -> str:
        """What distinguishes the arm."""
        return " ".join(o for o in candidate.overrides if key_of(o) in self.differing)

    def reference(self, candidate: Candidate) -> DictConfig:
        """The candidate with the reference's overrides in place of its own."""
        chosen = {key_of(o): o for o in self.match.overrides}
        line = [chosen.get(key_of(o), o) for o in candidate.overrides]
        line += [o for key, o in chosen.items() if key not in map(key_of, candidate.overrides)]
        known = _but_seeds(line)
        if known not in self.references:
            try:
                self.references[known] = self.compose(line)
            except Exception as error:
                if isinstance(error, HydraException | OmegaConfBaseException):
                    reason = hydras_own(error)
                elif is_config_error(error):
                    reason = str(error)
                else:
                    raise
                refuse(f"match.reference={' '.join(self.match.overrides)} cannot be composed: {reason}")
        return self.references[known]

    def solve(self, candidate: Candidate, reference: DictConfig) -> Solution:
        value = self.value(candidate.cfg)
        try:
            target = self.value(reference)
        except Exception as error:
            if not is_config_error(error):
                raise
            refuse(f"match.reference={' '.join(self.match.overrides)}: {error}")
        fixed = frozenset(map(key_of, candidate.overrides))
        adjusted, found = self.adjuster(candidate.cfg, fixed, value, target)
        budget = {"kind": self.match.kind, "target": target, "value": found.value, "residual": found.residual}
        return Solution(adjusted, budget)

    def value(self, cfg: DictConfig) -> float:
        known = same_budget(cfg, self.match.kind)
        if known not in self.values:
            self.values[known] = self.budgets.of(cfg)
        return self.values[known]


def key_of(override: str) -> str:
    """What an override sets, in its long form: ``model/attention``, ``train.steps``."""
    return expand(override).partition("=")[0].lstrip("+~")


def _differing(by_key: Iterable[dict[str, str]]) -> list[str]:
    """The keys in which points differ, seeds apart."""
    by_key = list(by_key)
    keys = dict.fromkeys(key for line in by_key for key in line)
    return [key for key in keys if key not in _SEEDS and len({line.get(key) for line in by_key}) > 1]


def _but_seeds(line: Iterable[str]) -> frozenset[str]:
    return frozenset(expand(o) for o in line if key_of(o) not in _SEEDS)
