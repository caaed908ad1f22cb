"""One run: from a composed configuration to a trained, scored model on disk."""

import json
import math
import os
import statistics
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lmxexp import blas, device
from lmxexp.cli.validate import check
from lmxexp.interfaces import ConfigError, RunInfo, Source, Tokenizer
from lmxexp.logger.jsonl import read_metrics
from lmxexp.logger.loggers import Loggers
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.trees import by_path
from lmxexp.optim.build import build_optimizer
from lmxexp.record import environment_record
from lmxexp.tokenizer.load import load as load_tokenizer
from lmxexp.train import checkpoint, precision
from lmxexp.train.trainer import DivergedError, Trainer


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run_dir: Path
    status: str
    """``ok``, ``stopped`` (by a signal, resumable) or ``diverged``."""
    score: float
    """The last ``eval/loss``, or ``train/loss`` where nothing was evaluated; infinite unless the status is ok."""
    summary: dict[str, Any]
    signal: int | None = None
    """The signal that stopped it."""


@dataclass(frozen=True)
class LoadedRun:
    """A finished or stopped run, read back."""

    model: LanguageModel
    tokenizer: Tokenizer | None
    cfg: DictConfig
    step: int


def build_model(cfg: DictConfig, *, vocab_size: int) -> LanguageModel:
    """The model that ``cfg`` describes, initialised from ``cfg.seed``.

    Raises:
        ConfigError: sizes or kinds that do not fit together.
    """
    factory = instantiate(cfg.model.net, _convert_="all")
    mx.random.seed(cfg.seed)
    model = factory(vocab_size=vocab_size)
    shared = {id(m): name for name, m in model.named_modules()}
    if len(shared) != len(list(model.modules())):
        raise ConfigError("model: one module instance stands in two places and would be tied: give it _partial_: true")
    instantiate(cfg.model.init, _convert_="all")(model, mx.random.key(cfg.seed))
    mx.eval(model.parameters())
    return model


def run(cfg: DictConfig, run_dir: str | Path | None = None) -> RunResult:
    """Train and score what ``cfg`` (from `lmxexp.compose`) describes, and leave a record of it.

    Args:
        cfg: composed configuration. With ``cfg.resume`` the run in that directory goes on.
        run_dir: where everything is written; None: a new directory under ``outputs/runs``.

    Raises:
        ConfigError: a setting that cannot work; nothing was trained.
        MemoryLimitError, OSError: the run failed; its record says so, and its checkpoints stay.
    """
    check(cfg)
    if (warning := blas.warning()) is not None:
        print(warning, file=sys.stderr)
    saved = _checkpoint_to_resume(cfg.resume) if cfg.resume else None
    directory = Path(cfg.resume or run_dir or _new_run_dir(cfg))
    directory.mkdir(parents=True, exist_ok=True)
    if saved is None and (directory / "run.json").exists():
        raise ConfigError(f"{directory} holds a run already: resume={directory} goes on with it, or choose another")

    if saved and (finished := _finished(saved, cfg, directory)):
        return finished

    _start_clean(cfg.seed)
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    settings = instantiate(cfg.train)
    source = _build_source(cfg)
    model = build_model(cfg, vocab_size=source.vocab_size)
    chosen_precision = precision.resolve(settings.precision, on_gpu=device.is_gpu())
    if chosen_precision == "bf16":
        model.set_dtype(mx.bfloat16)
    optimizer = build_optimizer(instantiate(cfg.optim, _convert_="all"), instantiate(cfg.schedule, _convert_="all"))
    optimizer.init(model.trainable_parameters())
    peak_gflops = blas.measure(precision.DTYPES[chosen_precision])
    _start_clean(cfg.seed)  # of the measurement's memory, and of what random numbers the design's constructors drew

    run_id = saved.state["run_id"] if saved else uuid.uuid4().hex[:12]
    record = {
        "status": "running",
        "run_id": run_id,
        "choices": dict(config["choice"]),
        "seeds": {"seed": cfg.seed, "data": config["data"].get("seed")},
        "params": model.n_params(),
        "params_by_part": _params_by_part(model),
        "flops_per_token": model.flops_per_token(settings.seq_len),
        "state_elements": model.state_size(settings.seq_len),
        "vocab_size": source.vocab_size,
        "precision": chosen_precision,
        "matmul_gflops": peak_gflops,
        "data": {"fingerprint": source.fingerprint, **source.record},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "resumed_from_step": saved.step if saved else None,
        **environment_record(sys.argv),
    }
    logger = Loggers(_chosen(cfg, "logger"))
    trainer = Trainer(
        model,
        optimizer,
        instantiate(cfg.loss, _convert_="all"),
        source,
        settings,
        callbacks=_chosen(cfg, "callback"),
        logger=logger,
        run_dir=directory,
        run_id=run_id,
        precision=chosen_precision,
        peak_flops=peak_gflops * 1e9,
    )
    if saved:
        trainer.restore(saved)
        trainer.history = [line for line in _logged(directory) if line["step"] <= saved.step]
    else:
        _save_config(cfg, config, directory)
    if source.tokenizer is not None:
        source.tokenizer.save(directory / "tokenizer.json")
    _write_json(directory / "run.json", record)
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
        group=config.get("sweep"),
    )
    return _fit(trainer, logger, info)


def _fit(trainer: Trainer, logger: Loggers, info: RunInfo) -> RunResult:
    """Train, and whatever happens leave a summary with a status."""
    status, error = "failed", None
    start = time.perf_counter()
    try:
        logger.start(info)
        status = trainer.fit()
    except DivergedError as e:
        status, error = "diverged", str(e)
    except BaseException as e:
        error = f"{type(e).__name__}: {e}"
        raise
    finally:
        summary = {"status": status, "error": error, **_summary(trainer), "seconds": time.perf_counter() - start}
        _write_json(info.run_dir / "summary.json", summary)
        _write_json(info.run_dir / "run.json", {**info.record, "status": status, "error": error})
        logger.finish(status, summary)
    if error is not None:
        print(f"diverged: {error}", file=sys.stderr)
    return _result(info.run_dir, summary, trainer.signals.received)


def _summary(trainer: Trainer) -> dict[str, Any]:
    """The run in a few numbers: the last value of each metric, the best evaluation, typical speed, peak memory."""
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
        "best/eval/loss": trainer.progress.best_eval_loss,
        "best/step": trainer.progress.best_eval_step,
        "perf/tokens_per_s": statistics.median(speeds) if speeds else None,
        "perf/first_step_s": trainer.clock.first_step_seconds,
        "mem/peak_gb": max(peaks, default=None),
        "params": trainer.model.n_params(),
    }


def _result(run_dir: Path, summary: dict[str, Any], signal: int | None = None) -> RunResult:
    score = summary.get("eval/loss", summary.get("train/loss", math.inf))
    return RunResult(run_dir, summary["status"], score if summary["status"] == "ok" else math.inf, summary, signal)


def load(run_dir: str | Path, which: str = "newest") -> LoadedRun:
    """Model, tokenizer and configuration of a run.

    Args:
        run_dir: the run's directory.
        which: ``newest`` or ``best`` checkpoint.

    Raises:
        ConfigError: not a run, or no such checkpoint.
    """
    directory = Path(run_dir)
    cfg = load_config(directory)
    path = {"newest": checkpoint.newest, "best": checkpoint.best}[which](directory / "checkpoints")
    if path is None:
        raise ConfigError(f"{directory} has no {which} checkpoint: was the run stopped before its first?")
    saved = checkpoint.read(path)
    record = json.loads((directory / "run.json").read_text())
    model = build_model(cfg, vocab_size=record["vocab_size"])
    if record["precision"] == "bf16":
        model.set_dtype(mx.bfloat16)
    arrays = saved.load("model")
    checkpoint.check_shapes(model.parameters(), arrays, f"{path}/model.safetensors")
    model.load_weights(list(arrays.items()))
    model.eval()
    tokenizer = directory / "tokenizer.json"
    return LoadedRun(model, load_tokenizer(tokenizer) if tokenizer.exists() else None, cfg, saved.step)


def load_config(run_dir: Path) -> DictConfig:
    """The resolved configuration of the run in a directory.

    Raises:
        ConfigError: the directory is missing or holds no run.
    """
    if not (run_dir / "config.yaml").is_file() or not (run_dir / "run.json").is_file():
        raise ConfigError(f"{run_dir} is not the directory of a run: it has no config.yaml and run.json")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def _finished(saved: checkpoint.Checkpoint, cfg: DictConfig, run_dir: Path) -> RunResult | None:
    """The result of a run of which nothing is left to do, or None."""
    summary = run_dir / "summary.json"
    if saved.step < cfg.train.steps or not summary.exists():
        return None
    content = json.loads(summary.read_text())
    if content["status"] != "ok":
        return None
    print(f"{run_dir} is finished: {saved.step} steps of train.steps={cfg.train.steps}. A larger train.steps goes on.")
    return _result(run_dir, content)


def _logged(run_dir: Path) -> list[dict[str, Any]]:
    file = run_dir / "metrics.jsonl"
    return read_metrics(file) if file.exists() else []


def _build_source(cfg: DictConfig) -> Source:
    return instantiate(cfg.data, _convert_="all")(tokenizer=instantiate(cfg.tokenizer, _convert_="all"))


def _chosen(cfg: DictConfig, group: str) -> dict[str, Any]:
    """The objects of a group of which any number may be chosen, by name; with none chosen the group is absent."""
    return instantiate(cfg[group], _convert_="all") if cfg.get(group) else {}


def _checkpoint_to_resume(run_dir: str) -> checkpoint.Checkpoint:
    path = checkpoint.newest(Path(run_dir) / "checkpoints")
    if path is None:
        raise ConfigError(f"resume={run_dir}: there is no checkpoint under {run_dir}/checkpoints; start the run anew")
    return checkpoint.read(path)


def _new_run_dir(cfg: DictConfig) -> Path:
    now = time.time()
    clock = time.localtime(now)
    outputs = os.environ.get("LMXEXP_OUTPUTS", "outputs")
    name = f"{time.strftime('%H-%M-%S', clock)}-{int(now % 1 * 1e6):06d}_{cfg.name}"
    return Path(outputs) / "runs" / time.strftime("%Y-%m-%d", clock) / name


def _start_clean(seed: int) -> None:
    """Undo what an earlier run in this process left: peak memory and random state go from job to job."""
    device.clear_cache()
    device.reset_peak_memory()
    mx.random.seed(seed)


def _params_by_part(model: LanguageModel) -> dict[str, int]:
    parts: dict[str, int] = {}
    for path, p in by_path(model.trainable_parameters()).items():
        keys = [k for k in path.split(".") if not k.isdigit()]
        part = keys[1] if keys[0] == "layers" else keys[0]
        parts[part] = parts.get(part, 0) + p.size
    return parts


def _save_config(cfg: DictConfig, config: Mapping[str, Any], directory: Path) -> None:
    """``config.yaml``, resolved, and ``.hydra/config.yaml`` with its interpolations, from which a run is resumed."""
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    unresolved = directory / ".hydra" / "config.yaml"
    unresolved.parent.mkdir(exist_ok=True)
    unresolved.write_text(OmegaConf.to_yaml(cfg))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one piece."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
    os.replace(temporary, path)
