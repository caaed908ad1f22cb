"""Of a sweep with ``tune=…``: each mixer at the value that is best for it, task by task."""

from __future__ import annotations

from collections.abc import Sequence

from lmxexp.compare.arms import Arm, group
from lmxexp.compare.read import Run, read_sweep
from lmxexp.compare.tuned import analyse, setting


def tuned_key(runs: Sequence[Run]) -> str | None:
    """The setting that the runs' sweeps tuned, the same in all; None: none, or not the same.

    Runs that differ in it all the same are refused as any that differ in more than the card knows of.
    """
    places = dict.fromkeys(run.sweep_dir for run in runs)
    sweeps = [None if place is None else read_sweep(place) for place in places]
    keys = {(sweep.content.get("tune") or {}).get("key") if sweep else None for sweep in sweeps}
    return keys.pop() if len(keys) == 1 else None


def best(arm: Arm, key: str, metric: str) -> tuple[Arm, str | None]:
    """The runs of an arm at its best value, and the end of the bracket that it sits on, ``lowest`` or ``highest``.

    Trials that diverged are part of the bracket; any that did not come to their end stay with the arm, as failed. An
    arm of which no run ended well stays as it is.
    """
    runs = [*arm.runs, *arm.failed]
    tuned = analyse({arm.label: runs}, key, metric).arms[0]
    if tuned.representative is None:
        return arm, None
    (chosen,) = group([run for run in runs if setting(run, key) == tuned.representative.value], [key])
    others = [run for run in arm.failed if run not in chosen.failed and run.status != "diverged"]
    repeated = [run for run in arm.repeated if setting(run, key) == tuned.representative.value]
    return Arm(arm.label, chosen.runs, [*chosen.failed, *others], repeated), tuned.edge
