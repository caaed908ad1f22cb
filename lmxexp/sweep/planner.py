"""The plan of a sweep: every point composed, checked, matched in budget and named before the first one starts."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lmxexp.cli import errors
from lmxexp.cli.validate import check
from lmxexp.compose import complete
from lmxexp.identity import SWEEP_NODES
from lmxexp.sweep.ledger import Entry, Ledger
from lmxexp.sweep.points import Line, directory_name, varying
from lmxexp.sweep.prepare import Preparation, resolved


@dataclass(frozen=True)
class Planned:
    """A point that is ready to run."""

    line: Line
    cfg: DictConfig
    """Without the node ``hydra``."""
    hydra: DictConfig
    entry: Entry

    @property
    def steps(self) -> int:
        return self.cfg.train.steps

    def whole(self, until: int | None = None) -> DictConfig:
        """A copy of the configuration with the node ``hydra``, as launchers take it."""
        cfg = self.cfg.copy()
        with open_dict(cfg):
            cfg["hydra"] = self.hydra
            cfg.hydra.output_subdir = None  # of Hydra's own copies: config.yaml has it all
            cfg.sweep.until = until
        return cfg


@dataclass
class _Composed:
    """A point on its way through the plan."""

    line: Line
    own: Line
    """What distinguishes it."""
    cfg: DictConfig
    hydra: DictConfig
    config: dict[str, Any]
    """``cfg``, resolved."""


class Planner:
    """Makes points of lines of overrides.

    Args:
        compose: a line's configuration, with the node ``hydra``; it is the planner's to change.
        ledger: of the sweep; new points are added to it.
        mode: how the sweep chooses its points: grid, random, halving.
    """

    def __init__(self, compose: Callable[[Sequence[str]], DictConfig], ledger: Ledger, mode: str):
        self._compose_line, self._ledger, self._mode = compose, ledger, mode
        self._preparation = Preparation()
        self.match: dict[str, Any] | None = None
        self.tune: dict[str, Any] | None = None

    def plan(self, lines: list[Line]) -> list[Planned]:
        """The points, in the order of the lines; lines that come to the same run are one point.

        Raises:
            ConfigError: all that is wrong, with any of the points.
        """
        first, _ = self._compose(lines[0])
        if first.tune.key is not None:
            lines = self._tuned(lines, first)
        problems = _Problems(len(lines))
        points: list[_Composed] = []
        for line, own in zip(lines, varying(lines), strict=True):
            with problems.of(own):
                cfg, hydra = self._compose(line)
                _set_names(cfg, own, self._ledger.directory.name, self._mode)
                check(cfg, line, also=SWEEP_NODES)
                point = _Composed(line, own, cfg, hydra, resolved(cfg))
                self._preparation.identity(cfg, point.config)  # reads the data, if it is there
                points.append(point)
        problems.refuse()
        self._tell_left_behind(points)
        solved = self._match(points)
        planned: dict[str, Planned] = {}
        for point, solution in zip(points, solved, strict=True):
            with problems.of(point.own):
                self._preparation.try_out(point.cfg, point.config)
                identity = self._preparation.identity(point.cfg, point.config)
                if identity not in planned:
                    entry = self._ledger.find(identity) or Entry(-1, "", identity, point.own, **solution)
                    planned[identity] = Planned(point.line, point.cfg, point.hydra, entry)
        problems.refuse()
        return [self._register(point) for point in planned.values()]

    def _compose(self, line: Line) -> tuple[DictConfig, DictConfig]:
        """A line's configuration, and the node ``hydra`` by itself."""
        cfg = self._compose_line(line)
        HydraConfig.instance().set_config(cfg)  # the values of ${hydra:…}; makes the node read-only
        with open_dict(cfg):
            hydra = cfg.pop("hydra")
        OmegaConf.set_readonly(hydra, None)
        return complete(cfg, OmegaConf.to_container(hydra.runtime.choices)), hydra

    def _register(self, point: Planned) -> Planned:
        entry = point.entry
        if entry.num < 0:
            num = self._ledger.next_num()
            entry = replace(entry, num=num, dir=directory_name(num, entry.overrides))
            self._ledger.add(entry)
        with open_dict(point.cfg):
            point.cfg.sweep.identity = entry.identity
        return replace(point, entry=entry)

    def _tuned(self, lines: list[Line], first: DictConfig) -> list[Line]:
        from lmxexp.build import build
        from lmxexp.sweep.tune import bracket, expand

        check(first, lines[0], also=SWEEP_NODES)
        tune = build(first.tune)
        values = bracket(tune, first)
        self.tune = {"key": tune.key, "values": list(values)}
        return expand(lines, tune, values)

    def _tell_left_behind(self, points: Sequence[_Composed]) -> None:
        """Learning rates that the bracket does not move, once for each optimizer: an arm is not tuned in all."""
        from lmxexp.sweep.tune import left_behind

        if self.tune is None:
            return
        told = {}
        for point in points:
            for key, rate in left_behind(self.tune["key"], point.cfg).items():
                told[f"optim={point.cfg.choice.optim}: {key}={rate:g}"] = key
        for what, key in told.items():
            print(
                f"lmxexp: note: tune.key={self.tune['key']} does not move that of {what}; '{key}=${{..learning_rate}}' "
                f"makes them one, tune.key={key} tunes it by itself",
                file=sys.stderr,
            )

    def _match(self, points: list[_Composed]) -> list[dict[str, Any]]:
        """Of each point what was asked for and what is solved for; the solution is put into its configuration."""
        from lmxexp.build import build
        from lmxexp.sweep.match import Candidate, solve

        match = build(points[0].cfg.match)
        if match is None:
            return [{}] * len(points)
        # The whole sweep says what the reference is, not what of it is new.
        match = match.with_reference([point.line for point in points])
        self.match = match.record
        questions = [asked(self._preparation.identity(point.cfg, point.config), match.record) for point in points]
        known = [self._ledger.solved(question) for question in questions]
        new = [i for i, entry in enumerate(known) if entry is None]
        candidates = [Candidate(tuple(points[i].line), points[i].cfg) for i in new]
        compose = lambda line: self._compose(list(line))[0]
        solutions = dict(zip(new, solve(match, candidates, compose) if candidates else [], strict=True))
        result = []
        for i, (point, entry) in enumerate(zip(points, known, strict=True)):
            solution = entry or solutions[i]
            for key, value in solution.adjusted.items():
                OmegaConf.update(point.cfg, key, value)
            if solution.adjusted:
                point.config = resolved(point.cfg)
            adjusted = dict(solution.adjusted)
            result.append({"asked": questions[i], "adjusted": adjusted, "budget": solution.budget})
        return result


def asked(identity: str, match: dict[str, Any]) -> str:
    """What a budget is solved for: a point as it was composed, and the match. Asked again, the answer is the same."""
    return hashlib.sha256(json.dumps([identity, match], sort_keys=True).encode()).hexdigest()[: len(identity)]


def _set_names(cfg: DictConfig, own: Line, sweep: str, mode: str) -> None:
    """A point goes by what distinguishes it."""
    if cfg.sweep.on_failure not in ("continue", "stop"):
        errors.refuse(f"sweep.on_failure={cfg.sweep.on_failure}: expected one of continue, stop")
    with open_dict(cfg):
        cfg.sweep = {**cfg.sweep, "name": sweep, "mode": mode, "overrides": own, "until": None}
        if own:
            cfg.name = " ".join(own)


class _Problems:
    """Collects the mistakes of all points; one that all share is told once."""

    def __init__(self, n_points: int):
        self._n_points = n_points
        self._points: dict[str, list[str]] = {}
        self._point = ""

    def of(self, line: Sequence[str]) -> _Problems:
        self._point = " ".join(line)
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if error is None or not errors.is_config_error(error):
            return False  # what Hydra cannot compose is explained by who called it
        texts = [line.strip() for line in str(error).splitlines() if not line.endswith("settings cannot work:")]
        for text in texts:
            self._points.setdefault(text, []).append(self._point)
        return True

    def refuse(self) -> None:
        if self._points:
            errors.refuse([self._told(text, points) for text, points in self._points.items()])

    def _told(self, text: str, points: list[str]) -> str:
        if len(points) == self._n_points or not points[0]:
            return text
        others = len(points) - 1
        more = f" and {others} more point{'s' * (others > 1)}" if others else ""
        return f"{points[0]}{more}: {text}"


def sweep_directory(config: DictConfig) -> Path:
    return Path(str(config.hydra.sweep.dir)).absolute()
