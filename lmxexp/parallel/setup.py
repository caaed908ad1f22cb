"""From ``train.parallel`` to what a run on several devices needs; whatever cannot work is refused before anything is
computed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers

from lmxexp.interfaces import ConfigError, Ramp, Source
from lmxexp.model.language_model import LanguageModel
from lmxexp.optim import curvature
from lmxexp.parallel.averaged import Averaged
from lmxexp.parallel.sharded import Sharded, check_optimizer
from lmxexp.parallel.world import Ranks, World
from lmxexp.run_files import write_json
from lmxexp.train.memory import OutOfMemoryError
from lmxexp.train.settings import TrainSettings


def check(
    world: World, settings: TrainSettings, ramp: Ramp, optimizer: mlx.optimizers.Optimizer, *, resumed: bool
) -> None:
    """
    Raises:
        ConfigError: what does not go with so many processes, or with what connects them.
    """
    if world.size == 1:
        if settings.parallel is not None and not resumed:
            raise ConfigError(
                f"train.parallel={settings.parallel}: this is one process; start several with mlx.launch -n N -- "
                "python -m lmxexp …, or leave train.parallel out"
            )
        return
    if settings.profile:
        raise ConfigError("train.profile=true: a step is profiled on one device: leave mlx.launch out for it")
    check_shares(world.size, settings, ramp, optimizer)
    if settings.parallel == "fsdp":
        _check_backend(world)


def check_shares(n: int, settings: TrainSettings, ramp: Ramp, optimizer: mlx.optimizers.Optimizer) -> None:
    """
    Raises:
        ConfigError: what ``n`` devices cannot share.
    """
    if n == 1:
        return
    times = 1 if settings.n_micro == "auto" else settings.parts
    of = f"the {n} processes" + ("" if times == 1 else f" times train.n_micro={settings.n_micro}")
    whole, *stages = reversed(ramp.stages)
    if whole.batch_size % (n * times):
        raise ConfigError(
            f"train.batch_size={whole.batch_size} must be a multiple of {n * times}, {of}: "
            f"{-(-whole.batch_size // (n * times)) * n * times} is the next"
        )
    for stage in stages:
        if stage.batch_size % n:
            raise ConfigError(
                f"ramp.start: {n} processes cannot share the {stage.batch_size} sequences of the steps from "
                f"{stage.start} on: begin with more"
            )
    if curvature.curved(optimizer) is not None:
        raise ConfigError(
            f"optim={type(optimizer).__name__.lower()} estimates the curvature from labels that it draws for the whole "
            "batch: take another optimizer, or one device"
        )
    if settings.parallel == "fsdp":
        check_optimizer(optimizer)


def devices(
    world: World,
    settings: TrainSettings,
    model: LanguageModel,
    optimizer: mlx.optimizers.Optimizer,
    compute_dtype: mx.Dtype | None,
) -> Averaged | None:
    """What the trainer is given; None for one process. With fsdp model and optimizer are in parts from now on."""
    if not isinstance(world, Ranks):
        return None
    if settings.parallel == "fsdp":
        return Sharded(world, model, optimizer, compute_dtype)
    return Averaged(world)


def share(n: int, settings: TrainSettings) -> TrainSettings:
    """The settings as they are for the share of one of ``n`` processes."""
    return settings if n == 1 else replace(settings, batch_size=settings.batch_size // n)


def n_parts(n: int, settings: TrainSettings) -> int:
    """Of the model and the optimizer's state, of which each of ``n`` processes has one."""
    return n if settings.parallel == "fsdp" else 1


def several(settings: TrainSettings, n: int, connected: str = "") -> str:
    """One line on how ``n`` processes share the work; empty for one."""
    if n == 1:
        return ""
    return (
        f"{n} processes{connected}, train.parallel={settings.parallel or 'data'}: "
        f"{settings.batch_size // n} of train.batch_size={settings.batch_size} sequences each"
    )


def check_same_data(world: World, source: Source) -> None:
    """
    Raises:
        ConfigError: the ranks have other data.
    """
    world.refuse_unless_same(
        source.fingerprint,
        "the data is not the same for all processes: give every machine the same files, and the same Python for "
        "data=python_stdlib",
    )


def resumable_after_death(world: World, run_dir: Path, record: Mapping[str, Any]) -> None:
    """Have it said, if a process dies, how the run goes on, and written into its record."""
    if world.watch is not None:
        world.watch.mend = f"; go on with resume={run_dir}"
        if world.is_main:
            world.watch.on_death = lambda message: write_json(
                run_dir / "run.json", {**record, "status": "failed", "error": message}
            )


def without_another_try(
    world: World,
    run_dir: Path,
    autos: Sequence[str],
    too_large: Callable[[BaseException, Any], OutOfMemoryError],
) -> Callable[[BaseException, Any], OutOfMemoryError]:
    """What says why a run ends for want of memory. On several devices ``auto`` does not go on with less by itself, as
    the others would wait for the one that begins again: then it says how the run goes on, too.

    Args:
        autos: the run's `TrainSettings.autos`.
        too_large: says it for one device.
    """
    if world.size == 1 or not autos:
        return too_large

    def told(error: BaseException, trainer: Any) -> OutOfMemoryError:
        found = too_large(error, trainer)
        mend = (
            f"resume={run_dir} goes on, with a larger train.n_micro beside it (the last had {trainer.settings.parts})"
        )
        keys = " and ".join(f"train.{key}=auto" for key in autos)
        return OutOfMemoryError(
            f"{found}; on several devices {keys} cannot begin again by itself: {mend}", run_dir, None
        )

    return told


def record(world: World, settings: TrainSettings) -> dict[str, Any]:
    """For ``run.json``."""
    if world.size == 1:
        return {}
    return {"world": {"size": world.size, "backend": world.backend, "parallel": settings.parallel or "data"}}


def were(record: Mapping[str, Any], n: int) -> bool:
    """Whether as many processes trained the run of that record; others have other shares, and other parts of them."""
    return (record.get("world") or {}).get("size", 1) == n


def say(world: World, settings: TrainSettings) -> None:
    """Print the line, if there are several."""
    if line := several(settings, world.size, f" ({world.backend})"):
        print(line, file=sys.stderr)


def _check_backend(world: World) -> None:
    assert isinstance(world, Ranks)
    try:
        mx.eval(mx.distributed.sum_scatter(mx.zeros((world.size,)), group=world.group))
    except RuntimeError as error:
        raise ConfigError(
            f"train.parallel=fsdp: MLX's backend {world.backend} cannot add gradients up into parts "
            f"({' '.join(str(error).split())}): take train.parallel=data, or a backend that can, as nccl"
        ) from error
