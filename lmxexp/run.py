"""One run: from a composed configuration to a trained, scored model on disk."""

import copy
import dataclasses
import functools
import gc
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from omegaconf import DictConfig, OmegaConf, open_dict

import lmxexp
from lmxexp import blas, device, on_cpu, run_files
from lmxexp.build import build
from lmxexp.cli.validate import check
from lmxexp.data.build import build_source
from lmxexp.identity import SWEEP_NODES, identity
from lmxexp.interfaces import Ramp, RunInfo
from lmxexp.logger.loggers import Loggers
from lmxexp.model.build import build_model, check_documents, check_positions
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import optimizer_of
from lmxexp.parallel import setup as parallel
from lmxexp.parallel.session import together, told
from lmxexp.parallel.world import ALONE, World, update_from_main
from lmxexp.profile import profile
from lmxexp.ramp.build import ramp_of
from lmxexp.ramp.stages import flops_in, say, steps_of, tokens_in
from lmxexp.record import environment_record
from lmxexp.run_state import RunResult, begun_before, check_same_data, result_of
from lmxexp.train import precision
from lmxexp.train.drive import Steps, alone
from lmxexp.train.fitted import Way, ahead_gb, fitted
from lmxexp.train.memory import Ledger, OutOfMemoryError, is_out_of_memory, let_go, out_of_memory
from lmxexp.train.trainer import DivergedError, Trainer

_is_first = True


def run(cfg: DictConfig | None, run_dir: str | Path | None = None, *, until: int | None = None) -> RunResult:
    """Train and score a configuration, and leave a record of it: `run_steps`, which computes its own steps.

    Launched with others (`mlx.launch`), all processes call it, and do what rank 0 is given; the others may give None.
    """
    with together() as world:
        cfg, run_dir, until = told(world, (cfg, run_dir, until))
        assert cfg is not None
        try:
            return alone(run_steps(cfg, run_dir, until=until, world=world))
        finally:
            device.limit_memory(None)


def run_steps(
    cfg: DictConfig,
    run_dir: str | Path | None = None,
    *,
    until: int | None = None,
    side_by_side: bool = False,
    world: World = ALONE,
) -> Steps[RunResult]:
    """`steps_in_parts`, which with ``train.n_micro=auto`` or ``train.remat=auto`` go on from the newest checkpoint with
    less at a time where memory did not suffice."""
    beyond: Way | None = None
    while True:
        try:
            return (
                yield from steps_in_parts(cfg, run_dir, beyond, until=until, side_by_side=side_by_side, world=world)
            )
        except OutOfMemoryError as error:
            if error.beyond is None:
                raise
            beyond, directory, failed = error.beyond, str(error.run_dir), error
        print(f"{failed}: the run goes on with less at a time", file=sys.stderr)
        yield None
        let_go(failed)
        del failed
        cfg = copy.deepcopy(cfg)
        with open_dict(cfg):
            cfg.resume = directory


def steps_in_parts(
    cfg: DictConfig,
    run_dir: str | Path | None = None,
    beyond: Way | None = None,
    *,
    until: int | None = None,
    side_by_side: bool = False,
    world: World = ALONE,
) -> Steps[RunResult]:
    """Train and score what ``cfg`` (from `lmxexp.compose`) describes, and leave a record of it.

    Args:
        cfg: composed configuration. With ``cfg.resume`` the run in that directory goes on. With ``cfg.branch`` the
            run starts from another's checkpoint.
        run_dir: where everything is written; None: a new directory under ``outputs/runs``.
        beyond: what did not fit into memory before.
        until: pause after so many steps, with a checkpoint from which the run goes on as if it had not; None: no pause.
        side_by_side: whether other runs are under way in this process.
        world: the processes that train it.

    Raises:
        ConfigError: a setting that cannot work; nothing was trained.
        OutOfMemoryError, OSError: the run failed; its record says so, and its checkpoints stay.
    """
    begun = _begin()
    planned = bool((cfg.get("sweep") or {}).get("identity"))  # and checked
    if not planned:  # a planned point's is its own
        check(cfg)
        cfg = copy.deepcopy(cfg)  # instantiate resolves interpolations in place
        _leave_out_the_sweep(cfg)
    unresolved = run_files.to_yaml(cfg)
    on_cpu.prepare()
    if (warning := blas.warning()) is not None:
        print(warning, file=sys.stderr)
    directory = Path(cfg.resume or run_dir or run_files.new_run_dir(cfg))
    before, saved, start, finished = world.from_main(lambda: begun_before(cfg, directory, until))
    if finished:
        return finished
    shared, directory = directory, world.own_dir(directory)
    branch = cfg.get("branch")

    _start_clean(cfg.seed)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    settings = build(cfg.train)
    ramp = ramp_of(cfg)
    source = world.main_first(lambda: build_source(cfg))
    parallel.check_same_data(world, source)
    if branch and not saved:
        check_same_data(
            world.from_main(lambda: run_files.load_record(Path(branch.path))), source, f"branch={branch.path}"
        )
    check_same_data(before, source, f"resume={directory}")
    model = build_model(cfg, vocab_size=source.vocab_size)
    check_positions(model, settings.seq_len)
    if document_mask := getattr(source, "document_mask", False):
        check_documents(model, compute=True)
    chosen_precision = precision.resolve(settings.precision, on_gpu=device.is_gpu())
    if chosen_precision == "bf16":
        model.set_dtype(mx.bfloat16)
    update_from_main(world, model)
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    parallel.check(world, settings, ramp, optimizer, resumed=bool(cfg.resume))
    loss = build(cfg.loss)
    compute_dtype = precision.compute_dtype(chosen_precision)
    share = parallel.share(world.size, settings)
    n_parts = parallel.n_parts(world.size, settings)
    ledger = Ledger(model, optimizer, loss, share, compute_dtype, document_mask=document_mask, n_devices=n_parts)
    autos = settings.autos
    adapts = bool(autos) and world.size == 1  # others would wait for the one that begins again
    known = before if beyond is None and parallel.were(before, world.size) else None
    chosen = world.from_main(lambda: fitted(share, ledger, known=known, beyond=beyond))
    settings = dataclasses.replace(settings, n_micro=chosen.n_micro, remat=chosen.remat)
    peak_gflops = world.from_main(lambda: _peak_gflops(chosen_precision))
    flops_per_token = {stage.seq_len: model.flops_per_token(stage.seq_len) for stage in ramp.stages}
    counts = {  # of the whole model: devices may keep parts of it from here on
        "params": model.n_params(),
        "params_by_part": _params_by_part(model),
        "flops_per_token": _flops_per_token(flops_per_token, ramp, settings.steps),
        "state_elements": model.state_size(settings.seq_len),
    }
    devices = parallel.devices(world, settings, model, optimizer, compute_dtype)
    device.limit_memory(ahead_gb(settings))
    _start_clean(cfg.seed)  # of the measurement's memory, and of what random numbers the design's constructors drew

    run_id = saved.state["run_id"] if saved else before.get("run_id", uuid.uuid4().hex[:12])
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    record = {
        "status": "running",
        "run_id": run_id,
        "identity": identity(config, source.fingerprint),
        "choices": dict(config["choice"]),
        "seeds": {"seed": cfg.seed, "data": config["data"].get("seed")},
        **counts,
        "vocab_size": source.vocab_size,
        "precision": chosen_precision,
        "n_micro": settings.parts,
        "remat": settings.remat,
        "auto": autos,
        "matmul_gflops": peak_gflops,
        "data": {"fingerprint": source.fingerprint, **source.record},
        "started": before.get("started", now),
        "resumed": [*before.get("resumed", []), {"at": now, "step": start.step if start else 0}] if before else [],
        **({"ramp": say(ramp)} if ramp.grows else {}),
        **parallel.record(world, settings),
        **({"branch": {"run": branch.path, "identity": branch.identity, "step": branch.step}} if branch else {}),
        **environment_record(sys.argv),
    }
    parallel.say(world, settings)
    logger = Loggers(_chosen(cfg, "logger") if world.is_main else {})
    trainer = Trainer(
        model,
        optimizer,
        loss,
        source,
        settings,
        ramp=ramp,
        callbacks=_chosen(cfg, "callback"),
        logger=logger,
        run_dir=directory,
        run_id=run_id,
        precision=chosen_precision,
        peak_flops=peak_gflops * 1e9 * world.size,
        flops_per_token=flops_per_token,
        devices=devices,
    )
    if start:
        trainer.restore(start)
        trainer.history = [line for line in run_files.logged(directory) if line["step"] <= start.step]
    run_files.save_config(unresolved, config, directory)
    if source.tokenizer is not None:
        source.tokenizer.save(directory / "tokenizer.json")
    run_files.write_json(directory / "run.json", record)
    parallel.resumable_after_death(world, shared, record)
    sweep = config.get("sweep") or {}
    info = RunInfo(
        run_dir=directory,
        run_id=run_id,
        name=cfg.name,
        config=config,
        choices=record["choices"],
        record=record,
        total_steps=settings.steps,
        resume_step=trainer.step,
        tags=list(cfg.tags),
        group=sweep.get("name"),
        job_type=sweep.get("mode") or "run",
        side_by_side=side_by_side,
    )
    too_large = functools.partial(out_of_memory, ledger=ledger, adapts=adapts)
    too_large = parallel.without_another_try(world, shared, autos, too_large)
    return (yield from _fit(trainer, logger, info, until, too_large, begun))


def _begin() -> float:
    """When a run begins: now, or, if it is the process's first, when lmxexp was imported. Of an earlier one nothing is
    in memory any more."""
    global _is_first
    is_first, _is_first = _is_first, False
    if is_first:
        return lmxexp.IMPORTED_AT
    now = time.perf_counter()
    gc.collect()  # a compiled step holds itself, and with it the model and the optimizer of a run that is over
    return now


@functools.cache
def _peak_gflops(chosen_precision: str) -> float:
    """Measured once a process: the points of a sweep are relative to the same speed."""
    return blas.measure(precision.DTYPES[chosen_precision])


def _leave_out_the_sweep(cfg: DictConfig) -> None:
    """A run by itself has no use for what a sweep reads, and its record does not speak of it."""
    with open_dict(cfg):
        for key in SWEEP_NODES:
            cfg.pop(key, None)
            (cfg.get("choice") or {}).pop(key, None)


def _fit(
    trainer: Trainer,
    logger: Loggers,
    info: RunInfo,
    until: int | None,
    too_large: Callable[[BaseException, Trainer], OutOfMemoryError],
    begun: float,
) -> Steps[RunResult]:
    """Train, and whatever happens leave a summary with a status."""
    status, error = "failed", None
    start = time.perf_counter()
    try:
        logger.start(info)
        if trainer.settings.profile:
            profile.write(trainer, info)
        status = yield from trainer.steps(until)
    except DivergedError as e:
        status, error = "diverged", str(e)
    except BaseException as e:
        if is_out_of_memory(e):
            told = too_large(e, trainer)
            error = str(told)
            raise told from e
        error = f"{type(e).__name__}: {e}"
        raise
    finally:
        seconds = time.perf_counter() - start
        summary = {"status": status, "error": error, **_summary(trainer, info, begun), "seconds": seconds}
        try:
            run_files.write_json(info.run_dir / "summary.json", summary)
            population = {"population": trainer.n_members} if trainer.n_members > 1 else {}  # what its speed is of
            run_files.write_json(
                info.run_dir / "run.json", {**info.record, **population, "status": status, "error": error}
            )
        except OSError as e:
            if error is None:
                raise
            print(f"lmxexp: the summary could not be written either: {e}", file=sys.stderr)  # the first error is told
        finally:
            logger.finish(status, summary)
    if error is not None:
        print(f"diverged: {error}", file=sys.stderr)
    return result_of(info.run_dir, summary, trainer.signals.received)


def _summary(trainer: Trainer, info: RunInfo, begun: float) -> dict[str, Any]:
    """The run in a few numbers: the last value of each metric, the best evaluation, typical speed, peak memory, and how
    long it took from where it began (or, of a process's first, from the import of lmxexp) to the end of its first step.
    """
    last: dict[str, float] = {}
    for line in trainer.history:
        last |= line
    speeds = [line["perf/tokens_per_s"] for line in trainer.history if "perf/tokens_per_s" in line]
    peaks = [line["mem/peak_gb"] for line in trainer.history if "mem/peak_gb" in line]
    final = {name: value for name, value in last.items() if name.startswith(("eval/", "train/loss"))}
    return {
        "step": trainer.step,
        "tokens": trainer.tokens,
        **final,
        **trainer.paused_at,
        "best/eval/loss": trainer.progress.best_eval_loss,
        "best/step": trainer.progress.best_eval_step,
        "perf/tokens_per_s": statistics.median(speeds) if speeds else None,
        "perf/first_step_s": trainer.clock.first_step_seconds,
        "perf/compile_s": trainer.clock.compile_seconds,
        "perf/start_s": None if trainer.clock.first_step_at is None else trainer.clock.first_step_at - begun,
        "mem/peak_gb": max(peaks, default=None),
        "params": info.record["params"],
    }


def _chosen(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The objects of a group of which any number may be chosen, by name; with none chosen the group is absent."""
    return build(cfg[group]) if cfg.get(group) else {}


def _start_clean(seed: int) -> None:
    """Undo what an earlier run in this process left: peak memory and random state go from job to job."""
    device.clear_cache()
    device.reset_peak_memory()
    mx.random.seed(seed)


def _flops_per_token(by_seq_len: Mapping[int, int], ramp: Ramp, steps: int) -> int:
    """Forward and backward, on average over the run's tokens."""
    of_run = steps_of(ramp.stages, steps)
    return flops_in(of_run, by_seq_len.__getitem__) // tokens_in(of_run)


def _params_by_part(model: LanguageModel) -> dict[str, int]:
    parts: dict[str, int] = {}
    for path, p in by_path(model.trainable_parameters()).items():
        keys = [k for k in path.split(".") if not k.isdigit()]
        part = keys[1] if keys[0] == "layers" else keys[0]
        parts[part] = parts.get(part, 0) + p.size
    return parts
