"""From the runs of a sweep to the figures of a card. Reads files alone: needs no MLX, no Hydra and no account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmxexp.card.tuned import best, tuned_key
from lmxexp.compare.arms import Arm, check_by, group, hidden_axes
from lmxexp.compare.read import Run, find_runs, read_sweep

TASKS = ("lm", "mqar_64", "mqar_128", "copying", "induction")
"""In this order on the card; others come behind them."""
CURVES = ("train_tokens_per_s", "decode_tokens_per_s", "state_bytes", "train_peak_gb")
"""What ``callback=speed`` measures at every length."""


@dataclass(frozen=True)
class Spread:
    """One number of several seeds."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Mixer:
    """What the runs of one mixer say."""

    label: str
    """``mha``; with several words in ``by``, ``attention=mha position=rope``."""
    scores: dict[str, Spread]
    """By task: `Card.metrics` says of what. A task without a finished run is missing."""
    curves: dict[str, dict[int, Spread]]
    """By name in `CURVES`, then by length."""
    params: int | None
    """Of the model of the first task that it finished."""
    runs: list[Run] = field(default_factory=list)
    measured: list[Run] = field(default_factory=list)
    """Those that the curves are from."""


@dataclass(frozen=True)
class Card:
    """All mixers of a sweep."""

    mixers: list[Mixer]
    metrics: dict[str, str]
    """Task to the metric of its scores, ``eval/loss`` or ``eval/accuracy``; in order."""
    notes: list[str]
    """What is missing, and why."""
    commands: list[str] = field(default_factory=list)
    """That made the runs."""
    machines: list[str] = field(default_factory=list)
    """That the speeds were measured on."""

    @property
    def lengths(self) -> list[int]:
        """All that any mixer was measured at."""
        return sorted({n for m in self.mixers for curve in m.curves.values() for n in curve})


def read(paths: Sequence[Path | str], by: Sequence[str] = ("attention",)) -> Card:
    """The card of the runs in sweeps or folders.

    Args:
        paths: as of `lmxexp.compare.read.find_runs`.
        by: the choices or dotted keys that tell one mixer from another.

    Raises:
        ConfigError: no runs, none with a ``task``, or runs that differ in more than ``by``, the task and the seed.
    """
    from lmxexp.cli.errors import refuse

    by = tuple(dict.fromkeys(by))
    if "task" in by:
        refuse("--by task: the tasks are the columns of the card; name what makes its rows, such as --by attention")
    found = find_runs(paths)
    with_task = [run for run in found if _task(run)]
    if not with_task:
        refuse(
            f"{', '.join(map(str, paths))}: no run here has a task: "
            "python -m lmxexp -m experiment=card attention=mha,linear makes such a sweep"
        )
    check_by(by, with_task)
    tasks = sorted(dict.fromkeys(map(_task, with_task)), key=lambda t: TASKS.index(t) if t in TASKS else len(TASKS))
    key = tuned_key(with_task)
    cells: dict[str, dict[str, Arm]] = {}
    for task in tasks:
        of_task = [run for run in with_task if _task(run) == task]
        if unnamed := hidden_axes(of_task, (*by, key) if key else by):
            names = ",".join(axis.name for axis in unnamed)
            refuse(f"the runs of task={task} differ in {names} as well: --by {','.join(by)},{names} tells them apart")
        for arm in group(of_task, by):
            cells.setdefault(_label(arm.label, by), {})[task] = arm
    if not any(arm.runs for arms in cells.values() for arm in arms.values()):
        reasons = Counter(map(_reason, with_task))
        refuse("no run here is finished: " + "; ".join(f"{n} {reason}" for reason, n in reasons.items()))
    left_out = len(found) - len(with_task)
    notes = [f"{left_out} runs without a task are left out"] if left_out else []
    metrics = {task: _metric(task, (arms[task] for arms in cells.values() if task in arms)) for task in tasks}
    if key:
        notes += _tune(cells, key, metrics)
    mixers = [_mixer(label, arms, metrics, notes) for label, arms in cells.items()]
    if without := [mixer.label for mixer in mixers if not mixer.curves]:
        notes.append(f"{', '.join(without)}: no speeds: no finished run has callback=[…,speed], as task=lm has")
    machines = list(dict.fromkeys(machine for m in mixers for run in m.measured if (machine := _machine(run))))
    if len(machines) > 1:
        notes.append(f"speeds of different machines do not compare: {'; '.join(machines)}")
    return Card(mixers, metrics, notes, _commands(run for mixer in mixers for run in mixer.runs), machines)


def _tune(cells: dict[str, dict[str, Arm]], key: str, metrics: dict[str, str]) -> list[str]:
    """Leave of every arm its runs at the best value of ``key``; what is to be said of that."""
    ends: list[str] = []
    for label, arms in cells.items():
        for task in arms:
            arms[task], end = best(arms[task], key, metrics[task])
            if end in ("lowest", "highest"):
                ends.append(f"{label}, task={task}: the best {key} is the {end} that was tried; beyond may be better")
    return [f"every score is that of the best {key}, of each mixer and task", *ends]


def _task(run: Run) -> str:
    """The task of a run, of one that failed before it was written down too."""
    said = [o.partition("=")[2] for o in run.overrides if o.partition("=")[0] == "task"]
    return str(run.choices.get("task") or (said[-1] if said else ""))


def _label(label: str, by: Sequence[str]) -> str:
    return label.partition("=")[2] or label if len(by) == 1 else label


def _metric(task: str, arms: Iterable[Arm]) -> str:
    """Of text the loss, of a generated task the accuracy: text is what has bytes."""
    for arm in arms:
        for run in arm.runs:
            return "eval/accuracy" if run.record["data"].get("eval_bytes") is None else "eval/loss"
    return "eval/loss" if task == "lm" else "eval/accuracy"  # no run is through


def _commands(runs: Iterable[Run]) -> list[str]:
    """Of their sweeps, or their own."""
    commands: dict[Path, str | None] = {}
    for run in runs:
        place = run.sweep_dir or run.path
        if place not in commands:
            sweep = read_sweep(place) if run.sweep_dir else None
            commands[place] = (sweep.content if sweep else run.record).get("command")
    return list(dict.fromkeys(c for c in commands.values() if c))


def _machine(run: Run) -> str | None:
    """``AMD EPYC, 2 CPU cores``, ``Apple M4, metal``."""
    device = run.record.get("device") or {}
    name = device.get("name") or device.get("cpu")
    if not name:
        return None
    cores = device.get("cpu_cores")
    return f"{name}, {f'{cores} CPU cores' if device.get('backend') == 'cpu' and cores else device.get('backend')}"


def _mixer(label: str, arms: dict[str, Arm], metrics: dict[str, str], notes: list[str]) -> Mixer:
    """One row; what it lacks is added to the notes."""
    scores, curves, measured = {}, {}, []
    for task, metric in metrics.items():
        arm = arms.get(task)
        if arm is None:
            notes.append(f"{label}: no run of task={task}")
            continue
        notes += _reasons(f"{label}, task={task}", arm.failed)
        values = [run.summary[metric] for run in arm.runs if isinstance(run.summary.get(metric), int | float)]
        if len(values) < len(arm.runs):
            notes.append(f"{label}, task={task}: {len(arm.runs) - len(values)} runs have no {metric}")
        if values:
            scores[task] = spread(values)
        if not curves and (curves := _curves(arm.runs)):
            measured = arm.runs
    runs = [run for task in metrics if task in arms for run in arms[task].runs]
    params = next((run.record["params"] for run in runs if "params" in run.record), None)
    return Mixer(label, scores, curves, params, runs, measured)


def _reasons(what: str, failed: Sequence[Run]) -> list[str]:
    """A line for all seeds that ended alike."""
    seeds: dict[str, list[str]] = {}
    for run in failed:
        seeds.setdefault(_reason(run), []).append(str(run.seed))
    return [f"{what}, seed={','.join(of_reason)}: {reason}" for reason, of_reason in seeds.items()]


def _reason(run: Run) -> str:
    return f"{run.status}: {run.error}" if run.error else run.status


def _curves(runs: Sequence[Run]) -> dict[str, dict[int, Spread]]:
    """Metric, length, values of the seeds: from the last line in which each run has it."""
    values: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        last: dict[str, Any] = {}
        for line in run.metrics():
            last |= {name: value for name, value in line.items() if name.startswith("speed/")}
        for name, value in last.items():
            _, metric, length = name.split("/")
            values.setdefault(metric, {}).setdefault(int(length), []).append(value)
    return {
        metric: {n: spread(values[metric][n]) for n in sorted(values[metric])} for metric in CURVES if metric in values
    }


def spread(values: Sequence[float]) -> Spread:
    """Mean, smallest and largest."""
    return Spread(sum(values) / len(values), min(values), max(values), len(values))
