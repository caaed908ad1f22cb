"""``branch=RUN_DIR``: a new run that starts from a checkpoint of the run in that directory, which stays as it is.

Weights, optimizer state, random state and place in the data are that run's after ``branch.step`` steps; what was typed
is laid on top of its configuration, as for ``resume``. The node ``branch`` of the new run's configuration says where it
comes from.

A schedule that goes down towards the end of its run says from which step on by an attribute ``decay_start``: a branch
has to come off before that.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from lmxexp.cli.errors import refuse
from lmxexp.identity import SWEEP_NODES


def origin(base: DictConfig, run_dir: Path, step: int | None) -> dict[str, Any]:
    """Where a branch comes from, as it stands in its configuration.

    Args:
        base: the other run's configuration, unresolved.
        run_dir: its directory.
        step: of the checkpoint; None: the newest.

    Raises:
        ConfigError: no such checkpoint, or one in the other run's cooldown.
    """
    found = checkpoints(run_dir)
    if not found:
        refuse(f"branch={run_dir}: it has no checkpoint to start from: go on with it first, resume={run_dir}")
    if step is not None and step not in found:
        refuse(
            f"branch.step={step}: {run_dir} has no checkpoint of step {step}, only of {_listed(found)}: name one of "
            "these, or leave branch.step out for the newest; train.keep says how many a run keeps"
        )
    step = max(found) if step is None else step
    factor = _factor(base, run_dir, step, found)
    identity = json.loads((run_dir / "run.json").read_text()).get("identity")
    return {"path": str(run_dir), "step": step, "identity": identity, "factor": factor}


def begin(cfg: DictConfig, node: dict[str, Any], typed: Collection[str]) -> None:
    """Make a configuration that of a run which starts from another's checkpoint.

    ``train.steps`` follows from the schedule's ``cooldown_steps``, if it has them and no number was typed.

    Args:
        cfg: the other run's, with what was typed on top; changed in place.
        node: of `origin`.
        typed: the keys of the values that were typed.

    Raises:
        ConfigError: there are no steps after the branch.
    """
    step = node["step"]
    with open_dict(cfg):
        for name in SWEEP_NODES:  # the branch of a sweep's point is no point
            cfg.pop(name, None)
            cfg.choice.pop(name, None)
        cfg.branch = node
    length: Any = OmegaConf.select(cfg, "schedule.cooldown_steps", throw_on_missing=False)
    if isinstance(length, int) and not {"train", "train.steps"} & {*typed}:
        cfg.train.steps = step + length
    steps, follows = cfg.train.steps, length is not None or OmegaConf.is_missing(cfg.schedule, "cooldown_steps")
    if isinstance(steps, int) and steps <= step and not follows:
        refuse(f"train.steps={steps}: the run starts at step {step} of {node['path']}: raise train.steps")


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """The checkpoints of a run by their steps, in order."""
    paths = sorted((run_dir / "checkpoints").glob("step_*"))
    return {int(path.name.removeprefix("step_")): path for path in paths if re.fullmatch(r"step_\d+", path.name)}


def checkpoint_of(cfg: DictConfig) -> Path:
    """The checkpoint that a branch starts from.

    Raises:
        ConfigError: it is not there any more.
    """
    run_dir, step = Path(cfg.branch.path), cfg.branch.step
    found = checkpoints(run_dir)
    if step not in found:
        refuse(
            f"branch={run_dir}: its checkpoint of step {step}, which this run starts from, is gone: branch off another "
            f"(it has {_listed(found) or 'none'}), and keep more of them by train.keep"
        )
    return found[step]


def checked_step(text: str, value: Any) -> int | None:
    """``value``, if it can be a checkpoint's step.

    Args:
        text: as it was typed, for the message.
        value: of ``branch.step``.

    Raises:
        ConfigError: it is no number of steps.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        refuse(f"{text}: expected a checkpoint's number of steps, such as branch.step=1000, or null for the newest")
    return value


def _factor(base: DictConfig, run_dir: Path, step: int, found: Collection[int]) -> float:
    """The learning rate that the other run has after ``step`` steps, as a fraction of its peak."""
    import mlx.core as mx

    from lmxexp.build import build

    schedule = build(copy.deepcopy(base).schedule)  # instantiate resolves interpolations in place
    start = getattr(schedule, "decay_start", None)
    if start is not None and step > start:
        before = [known for known in found if known <= start]
        name = cast(str, base.choice.get("schedule", "its own"))
        mend = f"branch.step={max(before)}" if before else f"branch off at step {start} at the latest; it has none"
        refuse(
            f"branch.step={step}: the learning rate of {run_dir} goes down from step {start} on (schedule={name}), and "
            f"a branch comes off before that: {mend}"
        )
    return float(schedule(mx.array(step)).item())


def _listed(steps: Collection[int]) -> str:
    return ", ".join(map(str, sorted(steps)))
