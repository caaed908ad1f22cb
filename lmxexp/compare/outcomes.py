"""How runs ended that do not count, in words."""

from __future__ import annotations

from lmxexp.compare.arms import Arm
from lmxexp.compare.read import Run

_WORDS = {
    "pruned": "stopped early at step {step}",
    "stopped": "stopped at step {step}; resume={path} goes on",
    "paused": "paused at step {step}",
    "running": "running, or killed without a trace",
    "waiting": "has not started",
}
_STOPPED_IN_SWEEP = "stopped at step {step}; the same sweep command goes on"
_LOST = ("diverged", "failed", "killed")


def why(run: Run) -> str:
    """How a run that does not count ended: ``diverged: the loss of step 12 is nan``."""
    words = _STOPPED_IN_SWEEP if run.status == "stopped" and run.sweep else _WORDS.get(run.status)
    said = run.status if words is None else words.format(step=run.summary.get("step", "?"), path=run.path)
    return f"{said}: {' '.join(run.error.split())}" if run.error else said


def how_failed(arm: Arm) -> str:
    """``2 of 3 diverged``, or nothing where all seeds ended well or have not ended."""
    total = len(arm.runs) + len(arm.failed)
    parts = []
    for status in _LOST:
        count = sum(run.status == status for run in arm.failed)
        if count:
            parts.append(f"{count} of {total} {status}")
    return ", ".join(parts)
