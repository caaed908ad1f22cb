"""Runs and sweeps on disk, as they are compared: what was configured, what came of it, and how it ended.

Nothing here needs MLX, Hydra or an account.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmxexp.compare.config_file import ConfigReader, flatten
from lmxexp.compare.lines import FILE_NAME, read_lines, with_floats

BUDGETS = ("params", "flops", "tokens", "steps", "time", "memory")
"""What two runs can be equal in."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run's directory, read. Its configuration shares parts with other runs': read it, do not change it."""

    path: Path
    config: dict[str, Any]
    """Resolved, as plain containers; empty for one that failed before it was written."""
    record: dict[str, Any]
    """``run.json``."""
    summary: dict[str, Any]
    """``summary.json``, with infinities and NaN as floats; empty if missing."""
    status: str
    """``ok``, ``diverged``, ``failed``, ``killed``, ``stopped`` (by a signal), ``pruned`` (by successive halving),
    ``running`` (or killed without a trace), or ``waiting``: a point of a sweep that has not started."""
    error: str | None = None
    """The reason, where the status is a bad one."""
    sweep: str | None = None
    """The name of its sweep."""
    point: dict[str, Any] | None = None
    """Its entry in ``sweep.json``."""
    sweep_dir: Path | None = None

    @property
    def name(self) -> str:
        """Its directory's."""
        return self.path.name

    @cached_property
    def choices(self) -> dict[str, str]:
        """The chosen kind of every group."""
        return self.record.get("choices") or self.config.get("choice") or {}

    @cached_property
    def seed(self) -> int | None:
        """Of the initial weights; None where nothing says it."""
        return self._seed("seed", self.config.get("seed"), "seed")

    @cached_property
    def data_seed(self) -> int | None:
        """Of the data's order."""
        data = self.config.get("data") or {}
        found = self._seed("data", data.get("seed") if isinstance(data, dict) else None, "data.seed")
        return found if self.config or found is not None else self.seed

    @property
    def fingerprint(self) -> str | None:
        """Names the training and evaluation tokens."""
        return (self.record.get("data") or {}).get("fingerprint")

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration by dotted keys. Lists are values."""
        return flatten(self.config)

    @cached_property
    def overrides(self) -> tuple[str, ...]:
        """The words that chose it: of its point, otherwise those of its own command line."""
        if self.point is not None:
            return tuple(self.point.get("overrides") or ())
        file = self.path / ".hydra" / "overrides.yaml"
        if not file.is_file():
            return ()
        import yaml

        try:
            return tuple(str(o) for o in yaml.safe_load(file.read_text(encoding="utf-8")) or ())
        except (yaml.YAMLError, OSError):  # only helps to choose words
            return ()

    @property
    def adjusted(self) -> dict[str, Any]:
        """The keys that ``match=…`` solved for, with their values."""
        return (self.point or {}).get("adjusted") or {}

    def budget(self, kind: str) -> float | None:
        """What it used of a budget, or None where it is not known.

        Args:
            kind: ``params``; ``tokens``; ``steps``; ``flops``, of training, forward and backward; ``time``, seconds of
                training steps alone; ``memory``, peak in units of 1e9 bytes.
        """
        assert kind in BUDGETS
        s, r = self.summary, self.record
        tokens, speed = _number(s.get("tokens")), _number(s.get("perf/tokens_per_s"))
        if kind == "params":
            return _number(r.get("params")) or _number(s.get("params"))
        if kind == "flops":
            per_token = _number(r.get("flops_per_token"))
            return None if per_token is None or tokens is None else per_token * tokens
        if kind == "time":
            return None if tokens is None or not speed else tokens / speed
        return {"tokens": tokens, "steps": _number(s.get("step")), "memory": _number(s.get("mem/peak_gb"))}[kind]

    def metrics(self) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl``; none where it is missing. `lines` is what to use for a curve."""
        return self.lines()

    def lines(self, *names: str, at_most: int | None = None) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` that hold all the metrics named, thinned evenly to ``at_most``.

        A hundred times faster than `metrics` for what is logged now and then, such as ``eval/loss``.
        """
        key = (names, at_most)
        if key not in self._lines:
            self._lines[key] = read_lines(self.path / FILE_NAME, names, at_most)
        return self._lines[key]

    @cached_property
    def _lines(self) -> dict[Any, list[dict[str, Any]]]:
        return {}

    def _seed(self, recorded: str, configured: Any, override: str) -> int | None:
        seeds = self.record.get("seeds") or {}
        for value in (seeds.get(recorded), configured, self._overridden(override)):
            if isinstance(value, int):
                return value
        return None

    def _overridden(self, key: str) -> int | None:
        values = [value for k, _, value in (o.partition("=") for o in self.overrides) if k == key]
        return int(values[-1]) if values and values[-1].lstrip("-").isdigit() else None


def find_runs(paths: Sequence[Path | str]) -> list[Run]:
    """The runs in any mix of runs' directories, sweeps' directories and folders above them, each once.

    Raises:
        ConfigError: a path that is missing, or in which there is no run.
    """
    reader, problems = ConfigReader(), []
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            problems.append(_not_a_directory(path))
            continue
        found = list(_walk(path, reader, _sweep_above(path)))
        if not found:
            problems.append(
                f"{path} holds no run: give a run's directory (with run.json), a sweep's (with sweep.json) or a folder "
                f"above them, such as outputs/sweeps"
            )
        for run in found:
            runs.setdefault(run.path.resolve(), run)
    if problems or not runs:
        from lmxexp.cli.errors import refuse

        refuse(problems or "no path was given: give the directories of runs or sweeps")
    return list(runs.values())


@dataclass(frozen=True)
class Sweep:
    """``sweep.json``, and where it lies."""

    path: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content.get("name") or self.path.name)

    @cached_property
    def points(self) -> dict[Path, dict[str, Any]]:
        """By absolute directory."""
        return {(self.path / point["dir"]).absolute(): point for point in self.content.get("points") or []}

    @cached_property
    def forgotten(self) -> set[Path]:
        """Those that have not started and that the last command did not ask for. With which settings that all its
        points had in common they would have run is not known: they are missing in no arm of it."""
        asked = self.content.get("asked")
        return {
            path
            for path, point in self.points.items()
            if asked is not None and point["num"] not in asked and not (path.is_dir() and _is_run({*os.listdir(path)}))
        }


def read_sweep(directory: Path) -> Sweep | None:
    """The sweep of a directory, None if it is none's.

    Raises:
        ConfigError: its ``sweep.json`` is damaged.
    """
    file = directory / "sweep.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sweep = Sweep(directory, content)
        assert sweep.points is not None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        from lmxexp.cli.errors import refuse

        refuse(f"{file} is damaged ({error}): give the same sweep command again, which writes it anew")
    return sweep


def _walk(directory: Path, reader: ConfigReader, sweep: Sweep | None) -> Iterator[Run]:
    names = set(os.listdir(directory))
    if _is_run(names):
        yield _read(directory, names, reader, sweep)
        return
    if "sweep.json" in names:
        sweep = read_sweep(directory)
        assert sweep is not None
        for point in sweep.points.values():  # in the order of the sweep, not of the alphabet
            path = directory / point["dir"]
            there = set(os.listdir(path)) if path.is_dir() else set()
            if _is_run(there):
                yield _read(path, there, reader, sweep)
            elif path.absolute() not in sweep.forgotten:
                yield Run(path, {}, {}, {}, "waiting", None, sweep.name, point, sweep.path)
    for name in sorted(names, key=_natural):
        child = directory / name
        if name.startswith(".") or not child.is_dir() or (sweep is not None and child.absolute() in sweep.points):
            continue
        yield from _walk(child, reader, sweep)


def _is_run(names: set[str]) -> bool:
    return bool(names & {"run.json", "outcome.json"}) or {"config.yaml", FILE_NAME} <= names


def _read(directory: Path, names: set[str], reader: ConfigReader, sweep: Sweep | None) -> Run:
    damaged: list[str] = []

    def load(name: str) -> dict[str, Any]:
        if name not in names:
            return {}
        try:
            text = (directory / name).read_text(encoding="utf-8")
            return reader.read(text) if name.endswith(".yaml") else with_floats(json.loads(text))
        except Exception as error:  # one damaged run must not hide the others: it is listed with this reason
            damaged.append(f"{name} cannot be read: {' '.join(str(error).split())}")
            return {}

    config, record, summary, outcome = map(load, ("config.yaml", "run.json", "summary.json", "outcome.json"))
    status = outcome.get("status") or summary.get("status") or record.get("status") or "running"
    error = outcome.get("error") or summary.get("error") or record.get("error")
    if "step" not in summary and outcome.get("step") is not None:
        summary = {**summary, "step": outcome["step"]}
    if damaged:
        status, error = "failed", "; ".join(damaged)
    point = sweep.points.get(directory.absolute()) if sweep else None
    return Run(
        directory,
        config,
        record,
        summary,
        str(status),
        None if error is None else str(error),
        sweep.name if sweep else None,
        point,
        sweep.path if sweep else None,
    )


def _sweep_above(path: Path) -> Sweep | None:
    """The sweep of which ``path`` is a point."""
    for above in path.absolute().parents[:2]:
        sweep = read_sweep(above)
        if sweep is not None:
            return sweep if path.absolute() in sweep.points else None
    return None


def _natural(name: str) -> tuple[int, str]:
    """``2_…`` before ``10_…``."""
    number = name.partition("_")[0]
    return (int(number) if number.isdigit() else -1, name)


def _not_a_directory(path: Path) -> str:
    if path.exists():
        return f"{path} is a file: give the directory of a run or of a sweep, such as {path.parent}"
    from lmxexp.cli.errors import did_you_mean

    above = next((p for p in path.parents if p.is_dir()), Path("."))
    missing = path.relative_to(above).parts[0] if above != Path(".") else path.parts[0]
    hint = did_you_mean(missing, [p.name for p in above.iterdir()] if above.is_dir() else [])
    where = "the current directory" if above == Path(".") else above
    return f"{path}: no such directory; {where} has no {missing}{hint}"


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) and value == value else None
