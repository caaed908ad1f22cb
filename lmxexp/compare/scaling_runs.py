"""Scaling laws of finished runs, one for each design, and what they say in words."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lmxexp.compare.arms import check_by, value_of
from lmxexp.compare.axes import is_difference
from lmxexp.compare.measure import check_metric, value
from lmxexp.compare.mismatch import is_loss
from lmxexp.compare.scaling import ScalingLaw, fit
from lmxexp.compare.scaling_checks import distinct

if TYPE_CHECKING:
    from lmxexp.compare.read import Run

_NO_DESIGN = frozenset({"size", "train"})
"""Groups whose choice makes no other design: how big, and how long."""
ALL = "all runs"
"""The one design, where there is no other."""

_Point = tuple[float, float, float]
"""N, D and the loss of a run."""


@dataclass(frozen=True)
class Fits:
    """What `fit_runs` finds."""

    laws: dict[str, ScalingLaw]
    """By arm: ``attention=gqa``; ``all runs`` where there is one design."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why an arm has no law, and the mend."""
    notes: list[str] = field(default_factory=list)
    """Which runs were left out."""
    metric: str = "eval/loss"


def fit_runs(
    runs: Sequence[Run],
    *,
    by: Sequence[str] | None = None,
    metric: str = "eval/loss",
    bootstrap: int = 1000,
    rng_seed: int = 0,
) -> Fits:
    """Fit a law to the final losses of finished runs over sizes and budgets, one for each design.

    N is the total of trainable parameters (``params`` of ``run.json``: embeddings and all experts count), D the tokens
    trained on. Losses during training are no points of the law: the schedule had not ended there. Where runs of one
    design, size and budget differ in further settings, such as the learning rate, those with the least mean loss over
    their seeds count.

    Args:
        runs: from `lmxexp.compare.read.find_runs`.
        by: choices or dotted keys that make designs; by default all choices but the size.
        metric: of ``summary.json``.
        bootstrap, rng_seed: of `lmxexp.compare.scaling.fit`.

    Raises:
        ConfigError: no design has enough runs.
    """
    from lmxexp.cli.errors import refuse

    if not is_loss(metric):
        refuse(f"--metric {metric} is no loss, and a scaling law is one of losses: leave it out, or --metric eval/bpb")
    check_metric(runs, metric)
    notes: list[str] = []
    points = {run: point for run in runs if (point := _point(run, metric)) is not None}
    if len(points) < len(runs):
        notes.append(f"{len(runs) - len(points)} of {len(runs)} runs left out: not finished, or without {metric}")
    if not points:
        refuse(f"none of {len(runs)} runs has finished with a finite {metric}: there is nothing to fit")
    laws, refused = {}, {}
    for label, members in _designs(list(points), by).items():
        kept = _tuned(_newest(members, label, notes), points, label, notes)
        n_params, n_tokens, loss = np.array([points[run] for run in kept]).T
        try:
            laws[label] = fit(n_params, n_tokens, loss, bootstrap=bootstrap, rng_seed=rng_seed)
        except ValueError as error:  # a ConfigError: another design may have enough runs
            refused[label] = str(error)
    if not laws:
        listed = [reason if label == ALL else f"{label}: {reason}" for label, reason in refused.items()]
        refuse("\n".join(listed if len(listed) == 1 else ["no design has runs for a law", *(f"  {r}" for r in listed)]))
    return Fits(laws, refused, notes, metric)


def lines(fits: Fits, budgets: Sequence[float] = ()) -> list[str]:
    """The laws in words, for the terminal.

    Args:
        budgets: FLOPs to say the best size for; by default those of the largest run, and ten times it.
    """
    result = []
    for label, law in fits.laws.items():
        n, d = distinct(np.log(law.n_params)), distinct(np.log(law.n_tokens))
        runs = f"{len(law.loss)} runs, {n} size{'s' * (n > 1)}, {d} token budget{'s' * (d > 1)}"
        result += [f"{label}: {formula(law)}", f"  from {runs}; N counts all trainable parameters, D tokens"]
        result += [f"  {name:<6}{getattr(law, name):>10.4g}  95 % {_range(law.intervals[name])}" for name in law.fitted]
        result.append(f"  median distance of a run from the law: {law.spread:.2%}")
        result += [f"  {sentence}" for sentence in best_sizes(law, budgets)]
        result += [f"  warning: {warning}" for warning in law.warnings]
    result += [f"{label}: no law: {reason}" for label, reason in fits.refused.items()]
    return result + [f"note: {note}" for note in fits.notes]


def formula(law: ScalingLaw) -> str:
    """``L = 1.69 + 406 / N^0.34 + 411 / D^0.28``."""
    terms = [f"{law.E:.3g}"]
    if "A" in law.fitted:
        terms.append(f"{law.A:.3g} / N^{law.alpha:.3g}")
    if "B" in law.fitted:
        terms.append(f"{law.B:.3g} / D^{law.beta:.3g}")
    return f"L = {' + '.join(terms)}"


def best_sizes(law: ScalingLaw, budgets: Sequence[float] = ()) -> list[str]:
    """A sentence for each budget."""
    if len(law.fitted) < 5:
        axis = "token budget" if "A" in law.fitted else "size"
        return [f"no best size for a budget: all runs have one {axis}, which is part of E"]
    largest = 6 * float(np.max(law.n_params * law.n_tokens))
    result = []
    for flops in budgets or (largest, 10 * largest):
        best = law.optimal(flops)
        beyond = "; an extrapolation" if best.extrapolated else ""
        result.append(
            f"best at {flops:.3g} FLOPs (6 N D): N = {_count(best.n_params)} ({_counts(best.n_params_interval)}), "
            f"D = {_count(best.n_tokens)} ({_counts(best.n_tokens_interval)}), loss {best.loss:.4f} "
            f"({best.loss_interval[0]:.4f} to {best.loss_interval[1]:.4f}){beyond}"
        )
    return result


def _point(run: Run, metric: str) -> _Point | None:
    """None where one is missing or no positive number."""
    if run.status != "ok":
        return None
    n, d, loss = run.budget("params"), run.budget("tokens"), value(run, metric)
    if n is None or d is None or loss is None or not all(0 < v < math.inf for v in (n, d, loss)):
        return None
    return n, d, loss


def _designs(runs: Sequence[Run], by: Sequence[str] | None) -> dict[str, list[Run]]:
    """By label, in order of appearance."""
    if by is None:
        names = dict.fromkeys(name for run in runs for name in run.choices)
        by = sorted(n for n in names if n not in _NO_DESIGN and is_difference(f"choice.{n}"))
    else:
        check_by(by, runs)
    getters = {name: value_of(name) for name in by}
    found: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(f"{name}={get(run)}" for name, get in getters.items()), []).append(run)
    common = set.intersection(*map(set, found))
    return {" ".join(word for word in words if word not in common) or ALL: of for words, of in found.items()}


def _newest(runs: Sequence[Run], label: str, notes: list[str]) -> list[Run]:
    """One run of each setting, size, budget and seed: counting a repetition would take one observation for two."""
    found: dict[Hashable, Run] = {}
    for run in sorted(runs, key=lambda run: str(run.record.get("started") or "")):
        found[_setting(run), run.budget("params"), run.budget("tokens"), run.seed, run.data_seed, run.fingerprint] = run
    if len(found) < len(runs):
        notes.append(
            f"{label}: {len(runs) - len(found)} older runs of the same design and seed as a newer one left out"
        )
    kept = set(map(id, found.values()))
    return [run for run in runs if id(run) in kept]


def _tuned(runs: Sequence[Run], points: Mapping[Run, _Point], label: str, notes: list[str]) -> list[Run]:
    """Of the runs of one size and budget that differ in more than their seed, the setting of least mean loss."""
    cells: dict[Hashable, dict[tuple[tuple[str, str], ...], list[Run]]] = {}
    for run in runs:
        cells.setdefault((run.budget("params"), run.budget("tokens")), {}).setdefault(_setting(run), []).append(run)
    kept, dropped, keys = [], 0, set()
    for settings in cells.values():
        best = min(settings, key=lambda s: np.mean([points[run][2] for run in settings[s]]))
        kept += settings[best]
        dropped += sum(len(members) for setting, members in settings.items() if setting != best)
        keys |= {key for other in settings for key, _ in set(other) ^ set(best)}
    if dropped:
        varied = ", ".join(sorted(keys)[:3]) + (", …" if len(keys) > 3 else "")
        notes.append(
            f"{label}: {dropped} of {len(runs)} runs left out; the best {varied} of each size and budget counts"
        )
    return kept


def _setting(run: Run) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, repr(v)) for key, v in run.flat.items() if is_difference(key)))


def _count(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _counts(interval: tuple[float, float]) -> str:
    return f"{_count(interval[0])} to {_count(interval[1])}"


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4g} to {interval[1]:.4g}"
