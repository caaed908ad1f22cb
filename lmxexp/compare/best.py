"""Tuned arms: of a key that all arms were tried with, each arm is represented by its best value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lmxexp.compare.arms import Arm, value_of
from lmxexp.compare.axes import ABSENT
from lmxexp.compare.pairs import Values
from lmxexp.compare.read import Run, Sweep
from lmxexp.compare.tuned import TunedArm, Tuning, setting


def tuned_key(runs: Sequence[Run], sweeps: Sequence[Sweep], asked: str | None) -> str | None:
    """The key in which the arms are tuned: the user's, or that of the sweeps.

    Raises:
        ConfigError: no run has the user's key, or the sweeps have several.
    """
    keys = {tune["key"] for sweep in sweeps if (tune := sweep.content.get("tune"))}
    described = [run for run in runs if run.config]
    if asked is not None:
        if all(value_of(asked)(run) is ABSENT for run in described):
            from lmxexp.cli.errors import did_you_mean, refuse

            hint = did_you_mean(asked, sorted({key for run in described for key in run.flat}))
            refuse(f"--tune {asked}: no run has a setting of that name{hint}")
        return asked
    if len(keys) > 1:
        from lmxexp.cli.errors import refuse

        refuse(f"the sweeps are tuned in different keys ({', '.join(sorted(keys))}): choose one by --tune KEY")
    return keys.pop() if keys else None


def best_of_each(arms: Sequence[tuple[Arm, Values]], tuning: Tuning) -> list[tuple[Arm, Values]]:
    """Each arm with the runs at its best value of the key alone, `lmxexp.compare.tuned.TunedArm.representative`.

    Runs at other values are in none of the arm's lists. The best of several is chosen by the runs it is then judged by,
    which flatters all arms alike.

    Args:
        tuning: of these arms, in their order.
    """
    return [_best(arm, values, tuned, tuning.key) for (arm, values), tuned in zip(arms, tuning.arms, strict=True)]


def _best(arm: Arm, values: Values, tuned: TunedArm, key: str) -> tuple[Arm, Values]:
    best = tuned.representative
    if best is None:
        return arm, values
    at = lambda runs: [run for run in runs if setting(run, key) == best.value]
    label = f"{arm.label} at {key}={best.value:g}"
    kept = replace(arm, label=label, runs=at(arm.runs), failed=at(arm.failed), repeated=at(arm.repeated))
    return kept, {run: values[run] for run in kept.runs}
