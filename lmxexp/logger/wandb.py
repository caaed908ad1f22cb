"""Weights & Biases as a mirror of the run's own files."""

from __future__ import annotations

import html
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lmxexp.interfaces import ConfigError, RunInfo
from lmxexp.logger.jsonl import FILE_NAME, read_metrics
from lmxexp.logger.wandb_file import WandbFile, read_wandb_file
from lmxexp.logger.wandb_start import NAME_LENGTH, logged_in, set_up, tear_down, wanted_mode, within

_log = logging.getLogger(__name__)

_SETTLE_SECONDS = 2.0
"""The helper process of a killed run outlives it by 1.3 seconds (measured, wandb 0.31), and might still write."""
_FLUSH_SECONDS = 15.0
"""How often that process writes its file."""
_HANG_SECONDS = 30.0
"""A call that should take milliseconds and takes longer than this, on however busy a machine, will not come back."""
_ABANDON_SECONDS = 5.0
_GOOD_ENDS = ("ok", "stopped", "paused", "pruned")


class Wandb:
    """Mirrors metrics, configuration, samples and summary to W&B.

    ``metrics.jsonl`` is the truth. When a run goes on after a crash, the last step that W&B has is looked up (at the
    server, or in the local files of an offline run); the steps that were lost with W&B's buffers are sent again from
    ``metrics.jsonl``; and those that the resumed run computes once more are not sent twice. So no point is dropped or
    doubled. Samples are not sent again: ``samples.txt`` has them.

    The dashboard groups by ``choices.attention``, ``choices.optim`` … of the run's configuration: nested, which is how
    W&B addresses keys with dots. The same values stand there flat, as ``choice/attention``. Any other setting goes by
    its own name (``optim.learning_rate``). The x axis is W&B's own step, or tokens. What ``summary.json`` holds is in
    the run's summary, each key with ``summary/`` before it.

    Nothing here asks a question or waits without a bound. Without a login, or without an answer within
    ``init_timeout``, the run is logged offline, into ``wandb/`` of the run directory, and ``wandb sync`` sends it
    later. W&B prints nothing, does not capture the terminal and sends no error reports of its own
    (``WANDB_ERROR_REPORTING=true`` turns those on).

    Args:
        project: W&B project.
        entity: user or team; None: the account's default.
        group: the dashboard's group; None: the sweep's name.
        job_type: the dashboard's kind of run; None: what the sweep says (``grid``, ``halving`` …), ``run`` without one.
        mode: auto is what the environment variable ``WANDB_MODE`` says, else online for a user who is logged in (by
            ``wandb login`` or ``WANDB_API_KEY``), else offline. disabled does not import wandb.
        init_timeout: seconds to reach the server.
        finish_timeout: seconds to upload what is left at the end.

    Raises:
        ConfigError: a timeout that is not positive, or a WANDB_MODE that does not exist.
    """

    def __init__(
        self,
        project: str,
        entity: str | None,
        group: str | None,
        job_type: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        init_timeout: float,
        finish_timeout: float,
    ):
        for key, seconds in (("init_timeout", init_timeout), ("finish_timeout", finish_timeout)):
            if seconds <= 0:
                raise ConfigError(f"logger.wandb.{key}={seconds} must be a positive number of seconds")
        self.project, self.entity, self.group, self.job_type = project, entity, group, job_type
        self.mode: Literal["auto", "online", "offline", "disabled"] = mode
        self.init_timeout, self.finish_timeout = init_timeout, finish_timeout
        self._run: Any = None
        self._last = self._last_before = -1
        self._texts: dict[str, Any] = {}
        self._texts_step = 0

    def start(self, info: RunInfo) -> None:
        mode = wanted_mode(self.mode)
        if mode == "disabled":
            return
        # Before the import, which reads it.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

        self._folder = info.run_dir / "wandb"
        earlier = _earlier_files(self._folder, info.run_id)
        self._sync = "later: wandb sync "
        if any(file.history for path, file in earlier.items() if path.parent.name.startswith("run-")):
            self._sync += "--include-online "
        self._sync += str(self._folder)

        self._run = self._init(info, mode)
        for pattern in ("train/*", "eval/*", "data/*", "perf/*", "mem/*"):
            self._run.define_metric(pattern, step_metric="tokens")
        self._run.define_metric("tokens", hidden=True)
        self._run.define_metric("eval/loss", step_metric="tokens", summary="min")
        if self._run.offline:
            steps = [int(row["_step"]) for file in earlier.values() for row in file.history]
            self._last = max(steps, default=-1)
        else:
            self._last = self._run.starting_step - 1
        self._last_before = self._last
        self._send_again(info)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        if self._run is None or step <= self._last:
            return
        if self._texts_step < step:
            self._send_texts()
        # Not committed, so that a text of the same step joins the row: the next step's row closes this one.
        self._send({k: v if isinstance(v, int) else float(v) for k, v in metrics.items()}, step)
        self._last = step
        if self._texts_step == step:
            self._send_texts()

    def text(self, name: str, value: str, *, step: int) -> None:
        if self._run is None or step <= self._last_before:
            return
        import wandb

        page = f'<pre style="white-space: pre-wrap">{html.escape(value)}</pre>'
        if self._texts_step != step:
            self._send_texts()
        self._texts[name], self._texts_step = wandb.Html(page, inject=False), step
        # A text before its step's metrics waits for them: a server that has the row takes no metrics for it later.
        if step == self._last:
            self._send_texts()

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        if self._run is None:
            return
        self._send_texts()

        def end() -> None:
            self._run.summary.update({f"summary/{k}": v for k, v in _plain(dict(summary)).items()})
            self._run.finish(exit_code=0 if status in _GOOD_ENDS else 1)

        # W&B keeps to finish_timeout by itself, unless its helper process hangs.
        if within(self.finish_timeout + _ABANDON_SECONDS, end):
            self._run = None
        else:
            _log.warning("W&B: cut off after finish_timeout=%g s of uploading; %s", self.finish_timeout, self._sync)
            self.abandon()

    def abandon(self) -> None:
        """Lets W&B go, whatever state it is in, so that neither this process's exit nor its next run meets it."""
        self._run = None
        if wandb := sys.modules.get("wandb"):
            # Forgets the helper process at once, then waits for it. No run.finish before: that would wait first.
            within(_ABANDON_SECONDS, tear_down)
            vars(wandb)["run"] = None

    # --- starting ---------------------------------------------------------------------------------------------------

    def _init(self, info: RunInfo, mode: str) -> Any:
        import wandb

        problem = "" if mode == "offline" else "not logged in (`wandb login`)"
        if mode != "offline":
            try:
                set_up()
                if wandb.run is not None and not info.side_by_side:
                    wandb.run.finish()
                if logged_in():
                    run = self._init_as("online", info)
                    print(f"W&B: {run.url}", file=sys.stderr, flush=True)
                    return run
            except Exception as error:
                problem = f"cannot go online ({' '.join(str(error).split())})"
                tear_down()
        run = self._init_as("offline", info)
        if mode == "online" or problem.startswith("cannot"):
            _log.warning("W&B: %s; logging offline, %s", problem, self._sync)
        else:
            where = f"offline, {problem}" if problem else "offline"
            print(f"W&B: {where}, {self._sync}", file=sys.stderr, flush=True)
        return run

    def _init_as(self, mode: Literal["online", "offline"], info: RunInfo) -> Any:
        import wandb

        group = self.group or info.group
        config = _plain(info.config)
        config |= {f"choice/{name}": kind for name, kind in info.choices.items()}
        config["choices"] = dict(info.choices)
        config["record"] = _plain({k: v for k, v in info.record.items() if k not in ("choices", "config")})
        return wandb.init(
            mode=mode,
            project=self.project,
            entity=self.entity,
            group=group[:NAME_LENGTH] if group else None,
            job_type=self.job_type or info.job_type,
            name=info.name[:NAME_LENGTH],
            id=info.run_id,
            resume="allow",
            tags=info.tags,
            config=config,
            dir=info.run_dir,
            # The default returns the previous job's run in silence.
            reinit="create_new" if info.side_by_side else "finish_previous",
            settings=wandb.Settings(
                silent=True,
                console="off",
                symlink=False,
                use_dot_wandb=False,
                init_timeout=self.init_timeout,
                finish_timeout=self.finish_timeout,
                finish_timeout_raises=True,
            ),
        )

    def _send_again(self, info: RunInfo) -> None:
        file = info.run_dir / FILE_NAME
        for line in read_metrics(file) if file.exists() else []:
            step = line.pop("step")
            if step <= info.resume_step:
                self.log(line, step=step)

    def _send_texts(self) -> None:
        if self._texts:
            texts, self._texts = self._texts, {}
            self._send(texts, self._texts_step)

    def _send(self, row: dict[str, Any], step: int) -> None:
        if not within(_HANG_SECONDS, lambda: self._run.log(row, step=step)):
            raise TimeoutError(f"its helper process took nothing for {_HANG_SECONDS:g} s")


def _earlier_files(folder: Path, run_id: str) -> dict[Path, WandbFile]:
    """What this run left in earlier processes, once nobody writes there any more."""
    paths = list(folder.glob(f"*run-*/run-{run_id}.wandb"))
    files = {path: read_wandb_file(path) for path in paths}
    age = time.time() - max((path.stat().st_mtime for path in paths), default=0)
    if age < _FLUSH_SECONDS + _SETTLE_SECONDS and any(file.exit_code is None for file in files.values()):
        time.sleep(_SETTLE_SECONDS)
        files = {path: read_wandb_file(path) for path in paths}
    return files


def _plain(node: Any) -> Any:
    """Plain containers of what JSON knows, everything else as text."""
    return json.loads(json.dumps(node, default=str))
