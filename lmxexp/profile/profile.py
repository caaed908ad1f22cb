"""Where a step's time goes, measured before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from lmxexp import counts, device
from lmxexp.interfaces import RunInfo
from lmxexp.profile import find, plot, report, rest
from lmxexp.profile.capture import capture
from lmxexp.profile.clock import PartClock
from lmxexp.profile.part import Part
from lmxexp.profile.result import Profile, Row
from lmxexp.ramp.stages import stage_of
from lmxexp.run_files import write_json
from lmxexp.train.snapshot import Snapshot

if TYPE_CHECKING:
    from lmxexp.train.trainer import Trainer


def write(trainer: Trainer, info: RunInfo) -> Profile:
    """Profile a run that is about to train, into its directory, and show it: ``train.profile=true``.

    Writes ``profile.md``, ``profile.json`` and ``profile.png``, and where ``train.profile_capture`` says so a Metal
    capture of one step. Model, optimizer and random state, and the peak of memory, are as before afterwards.

    Args:
        trainer: restored from its checkpoint, if it has one.
        info: what its loggers were started with.
    """
    found = measure(trainer, info)
    directory = trainer.run_dir
    (directory / "profile.md").write_text(report.page(found), encoding="utf-8")
    write_json(directory / "profile.json", found.to_json())
    plot.draw(found, directory / "profile.png")
    trainer.logger.text("profile", report.table(found), step=trainer.step)
    return found


def measure(trainer: Trainer, info: RunInfo) -> Profile:
    """Time the parts of a trainer's step, and leave it as it is."""
    model, settings = trainer.model, trainer.settings
    training, n_micro = model.training, rest.parts(trainer)
    before = Snapshot(model, trainer.optimizer)
    model.train()
    try:
        with device.own_peak():
            arrays = rest.micro_batch(trainer)
            clock = PartClock(trainer.compute_dtype, compile=settings.compile)
            parts, other = find.parts(model, trainer.loss, arrays, trainer.compute_dtype)
            rows = _timed(trainer, clock, parts, other)
            forward, backward = clock(find.whole(model, trainer.loss, arrays))
            step = trainer.make_step()
            rows += rest.update_rows(trainer, step, arrays)
            before.restore()
            step_seconds = rest.whole_step_seconds(trainer, step)
            if settings.profile_capture is not None:
                batch = trainer.batch(trainer.step)
                capture(trainer.run_dir / settings.profile_capture, lambda: mx.eval(step(batch), step.state))
            rows.append(rest.to_device_row(trainer))
            beside = [rest.data_row(trainer), rest.logging_row(trainer, info, step(trainer.batch(trainer.step)))]
    finally:
        before.restore()
        model.train(training)
        device.clear_cache()
    return Profile(
        step_ms=1e3 * step_seconds,
        forward_ms=1e3 * n_micro * forward,
        backward_ms=1e3 * n_micro * backward,
        rows=rows,
        beside=beside,
        other=other,
        about=_about(trainer, info),
    )


def _timed(trainer: Trainer, clock: PartClock, parts: list[Part], other: dict[str, str]) -> list[Row]:
    """The parts' rows; ``other`` is told of those that cannot be timed."""
    stage = stage_of(trainer.ramp.stages, trainer.step)
    flops, n_micro = _flops(trainer, stage.seq_len), rest.parts(trainer)
    rows = []
    for part in parts:
        try:
            forward, backward = clock(part)
        except Exception as error:  # a user's part may not work by itself; the run does not depend on it
            other[" ".join(filter(None, (part.name, part.kind)))] = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        calls = part.calls * n_micro
        rows.append(
            Row(
                part.name,
                part.kind,
                part.layers,
                calls,
                1e3 * calls * forward,
                1e3 * calls * backward,
                forward_flops=flops(part) * stage.tokens,
            )
        )
    return rows


def _flops(trainer: Trainer, seq_len: int) -> Callable[[Part], int]:
    """FLOPs per token, forward, of a part, as `lmxexp.counts` has them."""
    model = trainer.model
    layers, others = counts.by_layer(model, seq_len)
    total = lambda part: part.flops + part.mixing_flops
    heads_ahead = 2 * len(model.ahead) * model.vocab_size * model.d_model  # counted there with the modules ahead

    def flops(part: Part) -> int:
        if part.name in ("mixer", "ffn", "block"):
            return sum(total(layers[i][part.name]) for i in part.layers if part.name in layers[i])
        if part.name == "head and loss":
            return total(others.get("head", counts.Part())) + heads_ahead
        if part.name == "ahead":
            return total(others.get("ahead", counts.Part())) - heads_ahead
        return 0

    return flops


def _about(trainer: Trainer, info: RunInfo) -> dict[str, Any]:
    machine = device.device_info()
    stage = stage_of(trainer.ramp.stages, trainer.step)
    per_token = trainer.model.flops_per_token(stage.seq_len) // 3
    return {
        "name": info.name,
        "device": machine["name"] if device.is_gpu() else machine["cpu"],
        "backend": machine["backend"],
        "precision": trainer.precision,
        "compiled": trainer.settings.compile,
        "batch_size": stage.batch_size,
        "seq_len": stage.seq_len,
        "n_micro": rest.parts(trainer),
        "params": trainer.model.n_params(),
        "at_step": trainer.step,
        "forward_flops": per_token * stage.tokens,
    }
