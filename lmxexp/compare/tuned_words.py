"""What tuning found, in sentences and as a table of the metric against the setting."""

from __future__ import annotations

from collections.abc import Mapping

from lmxexp.compare.tuned import Trial, TunedArm, Tuning


def warnings(tuning: Tuning) -> list[str]:
    """What makes the optima, or who wins, uncertain."""
    told = []
    if len({tuple(arm.values) for arm in tuning.arms}) > 1:
        told.append(f"arms were not tried at the same values of {tuning.key}: the best of more trials looks better")
    told += [text for arm in tuning.arms if (text := _of_edge(tuning, arm))]
    for arm in tuning.arms:
        if missing := [trial for trial in arm.trials if trial.unfinished]:
            at = ", ".join(f"{trial.value:g} ({trial.unfinished})" for trial in missing)
            told.append(f"{arm.label}: runs are missing at {tuning.key}={at}: no optimum is looked for there")
    if tuning.winner_changes:
        told.append(f"the winner changes with {tuning.key}: {_spoken(tuning.winners)}")
    return told


def lines(tuning: Tuning) -> list[str]:
    """The optimum of each arm, who wins, and warnings, in words."""
    result = [f"{tuning.metric} against {tuning.key}, means over seeds; the best of several trials is optimistic"]
    result += [_of_arm(tuning, arm) for arm in tuning.arms]
    if tuning.winner is not None and len(tuning.arms) > 1:
        result.append(f"each at its own optimum, {_ahead(tuning.winner)}")
    if len(tuning.winners) > 1 and len(tuning.arms) > 1 and not tuning.winner_changes:
        always = next(iter(tuning.winners.values()))
        result.append(f"{_ahead(always)} at each of {len(tuning.winners)} values of {tuning.key}")
    return [*result, *(f"warning: {text}" for text in warnings(tuning))]


def table(tuning: Tuning) -> list[list[str]]:
    """The curves in numbers, values of the setting by arms, the fewer of them across; a star marks the optima."""
    values = sorted({value for arm in tuning.arms for value in arm.values})
    columns = [[tuning.key, *(f"{value:g}" for value in values)]]
    columns += [[arm.label, *(_cell(arm, value) for value in values)] for arm in tuning.arms]
    return columns if len(tuning.arms) > len(values) else [list(row) for row in zip(*columns, strict=True)]


def _ahead(winner: str) -> str:
    return f"{winner} are equal" if " and " in winner else f"{winner} is ahead"


def _cell(arm: TunedArm, value: float) -> str:
    trial = next((trial for trial in arm.trials if trial.value == value), None)
    if trial is None:
        return "-"
    return f"{f'{trial.mean:.5g}' if trial.n else '-'}{' *' if trial is arm.optimum else ''}{_lost(trial)}"


def _lost(trial: Trial) -> str:
    parts = [f"{n} {how}" for n, how in ((trial.diverged, "diverged"), (trial.unfinished, "missing")) if n]
    return f" ({', '.join(parts)})" if parts else ""


def _of_arm(tuning: Tuning, arm: TunedArm) -> str:
    best = arm.optimum
    if best is None:
        parts = [f"{arm.label}: no value of {tuning.key} at which all seeds ended well"]
    else:
        seeds = f"{best.n} seed{'s' if best.n > 1 else ''}"
        between = f", {best.low:.5g} to {best.high:.5g}" if best.n > 1 else ""
        parts = [f"{arm.label}: best at {tuning.key}={best.value:g}, {best.mean:.5g} ({seeds}{between})"]
    if arm.estimate is not None:
        parts.append(f"a parabola puts the optimum near {arm.estimate:.2g}")
    if at := [trial for trial in arm.trials if trial.diverged]:
        parts.append("diverged at " + ", ".join(f"{trial.value:g} ({trial.diverged})" for trial in at))
    return "; ".join(parts)


def _of_edge(tuning: Tuning, arm: TunedArm) -> str | None:
    if arm.edge is None or arm.optimum is None:
        return None
    where = f"{arm.label}: the optimum, {tuning.key}={arm.optimum.value:g}, is the {arm.edge} value tried"
    if arm.edge == "only":
        return f"{where}: nothing was tuned"
    values = ",".join(f"{value:g}" for value in sorted([*arm.values, *arm.to_add]))
    return f"{where}: widen the bracket, tune.values=[{values}]"


def _spoken(winners: Mapping[float, str]) -> str:
    """Neighbouring values with one winner are told together."""
    told: list[tuple[list[float], str]] = []
    for value, label in winners.items():
        if told and told[-1][1] == label:
            told[-1][0].append(value)
        else:
            told.append(([value], label))
    at = lambda values: f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
    return ", ".join(f"at {at(values)} {label}" for values, label in told)
