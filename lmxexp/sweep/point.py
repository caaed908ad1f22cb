"""One point of a sweep: run it unless it has its result, and leave word of how it ended."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from lmxexp.cli import errors
from lmxexp.cli.validate import check
from lmxexp.compose import complete
from lmxexp.identity import SWEEP_NODES
from lmxexp.sweep.ledger import CONSOLE_FILE, STOP_FILE, Outcome, locked, read_outcome, write_outcome
from lmxexp.sweep.prepare import Preparation
from lmxexp.sweep.session import mode_of
from lmxexp.train.drive import Steps, alone


def run_point(cfg: DictConfig, hydra: Any, run_dir: Path, *, traceback: bool = False) -> Outcome:
    """Run a point by itself: `point_steps`, which computes its own steps."""
    return alone(point_steps(cfg, hydra, run_dir, Output(run_dir / CONSOLE_FILE), traceback=traceback))


def point_steps(
    cfg: DictConfig,
    hydra: Any,
    run_dir: Path,
    output: Output,
    *,
    traceback: bool = False,
    side_by_side: bool = False,
) -> Steps[Outcome]:
    """Run a point, or go on with it where its process was stopped or killed.

    A point that has its result is not run again. What it prints goes to ``console.log`` in its directory: the terminal
    shows the sweep.

    Args:
        cfg: composed, without ``hydra``; of our sweepers planned, of others as Hydra composed it.
        hydra: Hydra's own node.
        run_dir: of the point.
        output: where its prints go.
        traceback: whether to print the whole traceback of an error.
        side_by_side: whether other points are under way in this process.

    Returns:
        How it ended. Never raises an ``Exception``.
    """
    overrides = list((cfg.get("sweep") or {}).get("overrides") or _own(hydra))
    outcome = Outcome("", "failed", overrides=overrides, exit_code=1)
    began = time.monotonic()
    try:
        cfg = _prepared(cfg, hydra)
        outcome = replace(outcome, identity=cfg.sweep.identity)
        with locked(run_dir / ".lock", who=f"the point {run_dir}"):
            before = read_outcome(run_dir)
            if before is not None and before.identity not in ("", outcome.identity):
                errors.refuse(f"{run_dir} holds another point: give the sweep another name, sweep=NAME")
            if before is not None and before.final:
                return before
            if (run_dir.parent / STOP_FILE).exists():
                return replace(
                    outcome, status="stopped", error="another point failed (sweep.on_failure=stop)", exit_code=1
                )
            if before is not None:
                outcome = replace(outcome, attempt=before.attempt + 1, rungs=before.rungs, seconds=before.seconds)
            write_outcome(run_dir, replace(outcome, status="running", exit_code=0))
            with output:
                try:
                    outcome = yield from _run(cfg, run_dir, outcome, side_by_side)
                except Exception as error:
                    outcome = replace(outcome, error=_describe(error, run_dir, traceback))
            outcome = replace(outcome, seconds=outcome.seconds + time.monotonic() - began)
            write_outcome(run_dir, outcome)
    except Exception as error:  # before it began
        outcome = replace(outcome, error=errors.describe(error))
        if read_outcome(run_dir) is None:
            write_outcome(run_dir, outcome)
    if outcome.exit_code and outcome.status != "stopped" and (cfg.get("sweep") or {}).get("on_failure") == "stop":
        (run_dir.parent / STOP_FILE).touch()
    return outcome


def _prepared(cfg: DictConfig, hydra: Any) -> DictConfig:
    """The configuration with its identity; a sweeper that is not ours has planned nothing."""
    if (cfg.get("sweep") or {}).get("identity"):
        return cfg
    cfg = complete(cfg, hydra.runtime.choices)
    check(cfg, list(hydra.overrides.task), also=SWEEP_NODES)
    asked = {"match": cfg.choice.get("match", "none"), "tune": OmegaConf.select(cfg, "tune.key")}
    for key, value in asked.items():
        if value not in (None, "none"):
            errors.refuse(f"{key}={value} goes with hydra/sweeper=grid, random or halving, which plan all points")
    with open_dict(cfg):
        own = _own(hydra)
        names = {"name": Path(hydra.sweep.dir).name, "mode": mode_of(hydra), "overrides": own, "until": None}
        cfg.sweep = {**cfg.sweep, **names, "identity": Preparation().identity(cfg)}
        cfg.name = " ".join(own) or cfg.name
    return cfg


def _own(hydra: Any) -> list[str]:
    """What distinguishes a point of a sweeper that is not ours: what stands in the name of its directory."""
    shared = set(hydra.job.config.override_dirname.exclude_keys)
    typed = list(hydra.overrides.task)
    parsed = OverridesParser.create().parse_overrides(typed)
    return [o.input_line or "" for o in parsed if o.key_or_group not in shared] or typed


def _run(cfg: DictConfig, run_dir: Path, outcome: Outcome, side_by_side: bool) -> Steps[Outcome]:
    from lmxexp import run_files
    from lmxexp.run import run_steps

    if (run_dir / "run.json").is_file():
        known = run_files.load_record(run_dir).get("identity")
        if known != outcome.identity:
            errors.refuse(f"{run_dir} holds another run ({known}): give the sweep another name, sweep=NAME")
        with open_dict(cfg):
            cfg.resume = str(run_dir)
    until = cfg.sweep.get("until")
    result = yield from run_steps(cfg, run_dir=run_dir, until=until, side_by_side=side_by_side)
    codes = {"ok": 0, "paused": 0, "stopped": 128 + (result.signal or signal.SIGTERM)}
    step = result.summary.get("step")
    rungs = {**outcome.rungs, **({str(step): result.score} if result.status == "paused" else {})}
    return replace(
        outcome,
        status=result.status,
        score=math.inf if math.isnan(result.score) else result.score,  # which no sweeper could compare
        error=result.summary.get("error"),
        exit_code=codes.get(result.status, 1),
        step=step,
        rungs=rungs,
    )


def _describe(error: Exception, run_dir: Path, traceback: bool) -> str:
    file = None if errors.is_config_error(error) else errors.write_traceback(error, run_dir)
    message = errors.describe(error, Path(file.name) if file else None)
    errors.report(message, error if traceback else None)
    return message


class Output:
    """While it is entered, what is printed and logged goes to a file; a point that waits for its step lets go of it."""

    def __init__(self, path: Path):
        self._path = path
        self._file: Any = None
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._file = self._path.open("a", encoding="utf-8", buffering=1)
        self.resume()

    def __exit__(self, *_: object) -> None:
        self.suspend()
        self._file.close()
        self._file = None

    def suspend(self) -> None:
        self._undo.close()

    def resume(self) -> None:
        if self._file is None:
            return
        streams = (sys.stdout, sys.__stdout__, sys.stderr, sys.__stderr__)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                self._undo.callback(handler.setStream, handler.stream)
                handler.setStream(self._file)
        self._undo.enter_context(contextlib.redirect_stdout(self._file))
        self._undo.enter_context(contextlib.redirect_stderr(self._file))
