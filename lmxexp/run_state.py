"""Where a run stands before it begins: new, under way or finished; and how one ended."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmxexp import run_files
from lmxexp.cli.branch import checkpoint_of
from lmxexp.interfaces import ConfigError, Source
from lmxexp.train import checkpoint


@dataclass(frozen=True)
class RunResult:
    """How a run ended."""

    run_dir: Path
    status: str
    """``ok``, ``paused`` (where it was to pause), ``stopped`` (by a signal, resumable) or ``diverged``."""
    score: float
    """The last ``eval/loss``, or ``train/loss`` where nothing was evaluated; infinite unless it is ok or paused."""
    summary: dict[str, Any]
    signal: int | None = None
    """The signal that stopped it."""


def begun_before(
    cfg: DictConfig, directory: Path, until: int | None
) -> tuple[dict[str, Any], checkpoint.Checkpoint | None, checkpoint.Checkpoint | None, RunResult | None]:
    """The record of a run that goes on, its checkpoint, the one that it starts from, and its result if it is finished.

    Raises:
        ConfigError: it cannot go on, or its directory is another's.
    """
    before = run_files.load_record(directory) if cfg.resume else {}
    newest = checkpoint.newest(directory / "checkpoints") if cfg.resume else None
    saved = checkpoint.read(newest) if newest else None  # none: killed before the first, it starts over
    start = saved or (checkpoint.read(checkpoint_of(cfg)) if cfg.get("branch") else None)
    directory.mkdir(parents=True, exist_ok=True)
    if not cfg.resume and (directory / "run.json").exists():
        raise ConfigError(f"{directory} holds a run already: resume={directory} goes on with it, or choose another")
    return before, saved, start, _finished(saved, cfg, directory, until) if saved else None


def result_of(run_dir: Path, summary: dict[str, Any], signal: int | None = None) -> RunResult:
    score = summary.get("eval/loss", summary.get("train/loss", math.inf))
    scored = summary["status"] in ("ok", "paused")
    return RunResult(run_dir, summary["status"], score if scored else math.inf, summary, signal)


def _finished(saved: checkpoint.Checkpoint, cfg: DictConfig, run_dir: Path, until: int | None) -> RunResult | None:
    """The result of a run of which nothing is left to do, or None."""
    if saved.step > cfg.train.steps:
        raise ConfigError(f"train.steps={cfg.train.steps}: {run_dir} has done {saved.step} steps already")
    summary = run_dir / "summary.json"
    if not summary.exists():
        return None
    content = json.loads(summary.read_text())
    if until is not None and content["status"] == "paused" and content["step"] == min(until, cfg.train.steps):
        return result_of(run_dir, content)
    if saved.step < cfg.train.steps or content["status"] != "ok":
        return None
    print(f"{run_dir} is finished: {saved.step} steps of train.steps={cfg.train.steps}. A larger train.steps goes on.")
    return result_of(run_dir, content)


def check_same_data(before: dict[str, Any], source: Source, origin: str) -> None:
    """Refuse to go on with other data than the run began with: the numbers before and after would not be of one run."""
    known = before.get("data", {}).get("fingerprint", source.fingerprint)
    if known != source.fingerprint:
        raise ConfigError(
            f"{origin}: the data has changed since the run began (fingerprint {source.fingerprint}, was "
            f"{known}): restore the text and the tokenizer, or start a new run"
        )
