"""Arms: the runs of one design, which differ in their seeds alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmxexp.compare.axes import ABSENT, Axis, axes_of, hashable, signatures
from lmxexp.compare.read import Run

SEEDS = ("seed", "data.seed")


@dataclass(frozen=True, eq=False)
class Arm:
    """One design, and what came of it."""

    label: str
    """What distinguishes it, in the words that choose it: ``attention=gqa``."""
    runs: list[Run]
    """Those that ended well, one for each seed, in order of the seed."""
    failed: list[Run] = field(default_factory=list)
    """The others: diverged, failed, killed, stopped, pruned, running or waiting."""
    repeated: list[Run] = field(default_factory=list)
    """Older runs of a seed that `runs` has already. Counting both would take one observation for two."""


def group(runs: Sequence[Run], by: Sequence[str] | None = None, ignore: Iterable[str] = ()) -> list[Arm]:
    """Put runs into arms, in the order of their first runs.

    Args:
        runs: any.
        by: choices or dotted keys (``attention``, ``optim.learning_rate``), or ``sweep``: only these make arms. None:
            everything but seeds, names, paths, reports and what ``match`` solved for.
        ignore: dotted keys that make no arms.

    Raises:
        ConfigError: a word in ``by`` that no run knows.
    """
    described = [run for run in runs if run.config]
    ignore = tuple(ignore)
    if by:
        check_by(by, described or runs)
        members, labels = _by_words(runs, by)
    else:
        members, labels = _by_all(runs, described, ignore)
    different = signatures(described)
    return [_arm(labels[key], of_key, different) for key, of_key in members.items()]


def hidden_axes(runs: Sequence[Run], by: Sequence[str] | None, ignore: Iterable[str] = ()) -> list[Axis]:
    """The differences that ``by`` does not name."""
    described = [run for run in runs if run.config]
    if not by:
        return []
    getters = [value_of(word) for word in by]
    return [
        axis
        for axis in axes_of(described, ignore)
        if not any(all(hashable(get(run)) == axis.values[run] for run in described) for get in getters)
    ]


def value_of(word: str) -> Callable[[Run], Any]:
    """The value of what a user calls ``attention``, ``attention.n_kv_heads`` or ``optim.learning_rate``, in a run."""

    def get(run: Run) -> Any:
        if word == "sweep":
            return run.sweep or str(run.path.parent)
        if word in run.choices:
            return run.choices[word]
        for key in (word, f"model.{word}"):
            if key in run.flat:
                return run.flat[key]
        return _overrides(run).get(word, ABSENT)

    return get


def check_by(by: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse words that mean nothing in any run, and seeds.

    Raises:
        ConfigError: which words, and what may have been meant.
    """
    from lmxexp.cli.errors import did_you_mean, refuse

    problems = []
    for word in by:
        if word in SEEDS:
            problems.append(f"--by {word}: runs of different seeds are one arm, which is what uncertainty comes from")
        elif all(value_of(word)(run) is ABSENT for run in runs):
            known = {k for run in runs for k in (*run.choices, *run.flat, *_overrides(run))}
            known |= {k.removeprefix("model.") for k in known} | {"sweep"}
            hint = did_you_mean(word, sorted(known)) or "; such as attention, optim.learning_rate or sweep"
            problems.append(f"--by {word}: no run has a choice or a setting of that name{hint}")
    if problems:
        refuse(problems)


def _by_words(runs: Sequence[Run], by: Sequence[str]) -> tuple[dict[Any, list[Run]], dict[Any, str]]:
    members: dict[Any, list[Run]] = {}
    labels: dict[Any, str] = {}
    getters = {word: value_of(word) for word in by}
    if len({run.sweep for run in runs if run.sweep}) < len({run.sweep_dir for run in runs if run.sweep_dir}):
        getters |= {"sweep": lambda run: str(run.sweep_dir or run.path.parent)} if "sweep" in by else {}
    siblings = {run.sweep_dir: run for run in reversed(runs) if run.config and run.sweep_dir}
    for run in runs:
        values = {word: get(run) for word, get in getters.items()}
        if not run.config and run.sweep_dir in siblings:  # what its overrides do not say is equal in all of its sweep
            others = siblings[run.sweep_dir]
            values = {word: getters[word](others) if v is ABSENT else v for word, v in values.items()}
        key = tuple(str(hashable(v)) for v in values.values())
        members.setdefault(key, []).append(run)
        axes = [Axis(word, word, {run: hashable(v)}) for word, v in values.items()]
        labels.setdefault(key, " ".join(axis.term(run) or f"no {axis.name}" for axis in axes))
    return members, labels


def _by_all(
    runs: Sequence[Run], described: Sequence[Run], ignore: Sequence[str]
) -> tuple[dict[Any, list[Run]], dict[Any, str]]:
    different = signatures(described, ignore)
    keys = {run: tuple(values[run] for values in different.values()) for run in described}
    by_words: dict[Any, Any] = {
        (run.sweep_dir, _words(run, ignore)): keys[run] for run in reversed(described) if run.sweep_dir
    }
    members: dict[Any, list[Run]] = {}
    for run in runs:
        words = _words(run, ignore)
        alone = (run.sweep_dir, words or run.name)
        key = keys[run] if run.config else by_words.get((run.sweep_dir, words), alone)
        members.setdefault(key, []).append(run)

    axes = axes_of(described, ignore)
    labels: dict[Any, str] = {}
    for key, of_key in members.items():
        run = next((run for run in of_key if run.config), None)
        if run is None:  # nothing but what its point says
            labels[key] = " ".join(_words(of_key[0], ignore)) or of_key[0].name
        else:
            labels[key] = " ".join(term for axis in axes if (term := axis.term(run))) or _only_name(run, len(members))
    return members, _told_apart(labels, members, list(different))


def _told_apart(labels: dict[Any, str], members: dict[Any, list[Run]], keys: Sequence[str]) -> dict[Any, str]:
    """Arms of the same words get those further keys in which they differ, or else a number."""
    alike: dict[str, list[Any]] = {}
    for key, label in labels.items():
        alike.setdefault(label, []).append(key)
    told = dict(labels)
    for label, of_label in alike.items():
        if len(of_label) == 1:
            continue
        first = {key: next((r for r in members[key] if r.config), members[key][0]) for key in of_label}
        for number, key in enumerate(of_label, start=1):
            for name in sorted(keys, key=lambda k: (k.count("."), k)):
                values = [hashable(run.flat.get(name, ABSENT)) for run in first.values()]
                if len(set(values)) == len(values):
                    axis = Axis(name, name, {first[key]: hashable(first[key].flat.get(name, ABSENT))})
                    told[key] = f"{label} {axis.term(first[key]) or f'no {name}'}"
                    break
            else:
                told[key] = f"{label} #{number}"
    return told


def _only_name(run: Run, n_arms: int) -> str:
    return str(run.config.get("name") or run.name) if n_arms == 1 else "(defaults)"


def _arm(label: str, runs: Sequence[Run], different: dict[str, dict[Run, Any]]) -> Arm:
    good = [run for run in runs if run.status == "ok"]
    newest: dict[Any, Run] = {}
    for run in sorted(good, key=lambda r: str(r.record.get("started") or "")):
        inside = tuple(values.get(run, ABSENT) for values in different.values())
        newest[run.seed, run.data_seed, run.fingerprint, inside] = run
    kept = {id(run) for run in newest.values()}
    return Arm(
        label,
        sorted((run for run in good if id(run) in kept), key=_order),
        [run for run in runs if run.status != "ok"],
        [run for run in good if id(run) not in kept],
    )


def _order(run: Run) -> tuple[int, int]:
    return (-1 if run.seed is None else run.seed, -1 if run.data_seed is None else run.data_seed)


def _words(run: Run, ignore: Iterable[str]) -> tuple[str, ...]:
    """A point's overrides without its seeds."""
    left_out = (*SEEDS, *ignore)
    return tuple(o for o in run.overrides if o.partition("=")[0] not in left_out)


def _overrides(run: Run) -> dict[str, str]:
    return {key.lstrip("+~"): value for key, _, value in (o.partition("=") for o in run.overrides)}
