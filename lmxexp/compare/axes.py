"""In what runs differ, in the words that choose it: ``attention``, ``optim.learning_rate``, not the forty keys that
follow from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmxexp.compare.read import Run

Getter = Callable[[Run], Any]

_REPORTS = ("name", "tags", "resume", "branch", "sweep", "match", "tune", "logger", "callback", "debug", "hydra")
"""Nodes of the configuration that name, report or say how a sweep came by the rest. No differences of the design."""
_CHOICES_OF_REPORTS = tuple(f"choice.{group}" for group in (*_REPORTS, "hparams_search"))
_OF_TRAIN = (
    *("log_every", "eval_every", "checkpoint_every", "keep"),
    *("self_test", "memory_limit_gb", "profile", "profile_capture"),
)
"""Of ``train``: when something is written, not what is learned."""
_GROUPS = ("data", "tokenizer", "loss", "optim", "param_groups", "schedule", "ramp", "train")
"""Groups whose kinds fill the node of the same name. Those that are none of these, model or size fill the model's."""

_FIRST = {"choice.model": 0, "choice.size": 1}
"""Choices that are named before the others, which may follow from them."""


class _Absent:
    def __repr__(self) -> str:
        return "-"


ABSENT: Any = _Absent()
"""The value of a key that a run's configuration does not have."""
ADJUSTED: Any = "(adjusted)"
"""The value of a key that ``match=…`` solves for: whatever it is, it follows from the arm."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One difference between runs."""

    key: str
    """In `Run.flat`."""
    name: str
    """As it is written on the command line: ``attention``, ``model.d_ff``."""
    values: dict[Run, Any]

    def term(self, run: Run) -> str | None:
        """``attention=gqa``, or None where the run has no such key."""
        value = self.values[run]
        return None if value is ABSENT else f"{self.name}={as_written(value)}"


def is_difference(key: str) -> bool:
    """Whether a key can make two runs different arms. Seeds, names, paths and reports do not."""
    head, _, rest = key.partition(".")
    last = key.rpartition(".")[2]
    if head in _REPORTS or key in _CHOICES_OF_REPORTS:
        return False
    if last == "seed" or last == "path" or last.endswith(("_path", "_dir")):  # the data's fingerprint stands for paths
        return False
    return not (head == "train" and rest in _OF_TRAIN)


def signatures(runs: Sequence[Run], ignore: Iterable[str] = ()) -> dict[str, dict[Run, Any]]:
    """The keys in which the runs differ, with every run's value.

    Args:
        runs: with configurations.
        ignore: keys that are no difference, and their copies.
    """
    flats = {run: run.flat for run in runs}
    if not runs:
        return {}
    first = flats[runs[0]]
    keys = dict.fromkeys(key for flat in flats.values() for key in flat)
    differing = [
        key
        for key in keys
        if is_difference(key) and any(flat.get(key, ABSENT) != first.get(key, ABSENT) for flat in flats.values())
    ]
    solved = _solved(runs, ignore)
    copies = {key: _copies(key, differing, flats.values()) for key in set().union(*solved.values())}
    masks = {run: keys.union(*(copies[key] for key in keys)) for run, keys in solved.items()}
    values = {
        key: {run: ADJUSTED if key in masks[run] else hashable(flat.get(key, ABSENT)) for run, flat in flats.items()}
        for key in differing
    }
    return {key: of_runs for key, of_runs in values.items() if len(set(of_runs.values())) > 1}


def axes_of(runs: Sequence[Run], ignore: Iterable[str] = ()) -> list[Axis]:
    """The differences between runs that do not follow from others.

    What a choice brings with it (``model.attention.*`` of ``attention=gqa``), what an interpolation copies
    (``schedule.steps`` of ``train.steps``), and what ``match`` solved for, are not listed; what a command line or a
    sweep names is, unless it is one of the latter.
    """
    different = signatures(runs, ignore)
    named = {key for run in runs for o in run.overrides for key in _keys_of(o)}
    choices = [k for k in different if k.startswith("choice.") and not _of_preset(k, different, named)]
    all_choices = [k for k in different if k.startswith("choice.")]
    settings = [k for k in different if not k.startswith("choice.")]
    explained = {k for k in settings if k not in named and _explained(k, all_choices, different)}
    others = _without_copies(settings, different, named, explained)
    choices.sort(key=lambda k: _FIRST.get(k, len(_FIRST)))
    kept = choices + [k for k in others if k not in explained]
    groups = {k.partition("@")[2] or k for run in runs[:1] for k in run.choices}
    return [Axis(key, short(key, groups), different[key]) for key in kept]


def short(key: str, groups: Iterable[str]) -> str:
    """``attention`` of ``choice.attention``; ``attention.n_kv_heads`` of ``model.attention.n_kv_heads``."""
    if key.startswith("choice."):
        return key.removeprefix("choice.")
    parts = key.split(".")
    return ".".join(parts[1:]) if parts[0] == "model" and len(parts) > 2 and parts[1] in groups else key


def hashable(value: Any) -> Hashable:
    """The value, or what is equal to it and can be a key."""
    if isinstance(value, list):
        return tuple(hashable(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, hashable(v)) for k, v in value.items())
    return value


def as_written(value: Any) -> str:
    """As it is written on the command line, lists too; numbers with all of their digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_written, value))}]"
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    return str(value)


def _solved(runs: Sequence[Run], ignore: Iterable[str]) -> dict[Run, set[str]]:
    """Of each run, the keys that are masked: those that any point of its sweep had solved, the reference's as well."""
    of_sweep: dict[Any, set[str]] = {}
    for run in runs:
        of_sweep.setdefault(run.sweep_dir, set()).update(run.adjusted)
    ignored = {key for word in ignore for key in (word, f"model.{word}")}
    return {run: ignored | (of_sweep[run.sweep_dir] if run.sweep_dir else set()) for run in runs}


def _copies(key: str, differing: Sequence[str], flats: Collection[Mapping[str, Any]]) -> set[str]:
    """The keys that an interpolation fills with this one's value: of the same last part, and equal to it in every run
    that has both. In one run alone two settings may be equal by chance."""
    last = key.rpartition(".")[2]
    found = set()
    for other in differing:
        if other != key and other.rpartition(".")[2] == last:
            both = [(flat[key], flat[other]) for flat in flats if key in flat and other in flat]
            if both and all(a == b for a, b in both):
                found.add(other)
    return found


def _of_preset(key: str, different: dict[str, dict[Run, Any]], named: set[str]) -> bool:
    """Whether a choice of a part of the model is one that its preset makes."""
    preset = "choice.model"
    group = key.removeprefix("choice.")
    if key == preset or preset not in different or key in named or group in _GROUPS:
        return False
    return _is_function(different[key], [different[preset]])


def _explained(key: str, choices: Sequence[str], different: dict[str, dict[Run, Any]]) -> bool:
    """Whether a key's value follows from the choices in whose node it stands."""
    covering = [different[c] for c in choices if _covers(c.removeprefix("choice."), key)]
    return bool(covering) and _is_function(different[key], covering)


def _covers(group: str, key: str) -> bool:
    if group == "experiment":
        return True
    if group in _GROUPS:
        return key.startswith(f"{group}.")
    if group in ("model", "size"):
        return key.startswith("model.")
    slot = group.partition("@")[2] or group
    inside_net = key.startswith("model.net.") and not key.startswith("model.net.pattern.")
    return inside_net or key.startswith(f"model.{slot}.") or key == f"model.{slot}"


def _is_function(values: dict[Run, Any], of: Sequence[dict[Run, Any]]) -> bool:
    known: dict[Any, Any] = {}
    return all(known.setdefault(tuple(v[run] for v in of), value) == value for run, value in values.items())


def _without_copies(
    keys: Sequence[str], different: dict[str, dict[Run, Any]], named: set[str], explained: set[str]
) -> list[str]:
    """The keys that are set; not those that end alike and have the same values wherever a run has them. What a choice
    explains comes before what copies it: ``model.position.attention`` before ``model.attention.position``."""
    kept: dict[str, list[dict[Run, Any]]] = {}
    originals = set()
    first = lambda k: (k not in named, k not in explained, k.count("."), not k.startswith("train."), k)
    for key in sorted(keys, key=first):
        alike = kept.setdefault(key.rpartition(".")[2], [])
        if not any(_is_copy(different[key], of=original) for original in alike):
            alike.append(different[key])
            originals.add(key)
    return [key for key in keys if key in originals]


def _is_copy(values: dict[Run, Any], of: dict[Run, Any]) -> bool:
    return all(value is ABSENT or value == of[run] for run, value in values.items())


def _keys_of(override: str) -> tuple[str, ...]:
    """The keys that an override may mean."""
    key = override.partition("=")[0].lstrip("+~")
    parts = key.replace("/", ".").removeprefix("model.")
    return (key, f"model.{key}", f"choice.{parts}", f"choice.{key}")
