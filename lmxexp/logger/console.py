"""What a person sees while a run goes on."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from textwrap import indent
from typing import Any

from rich import box
from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from lmxexp.interfaces import RunInfo

_STATUS_STYLE = {"ok": "green", "stopped": "yellow", "diverged": "red", "failed": "red"}
_HYDRA_FLAGS = ("_partial_", "_convert_", "_recursive_")
_PLAIN_WIDTH = 120
"""Columns of a file or pipe, which has no width of its own."""


class Console:
    """The composed configuration, a live progress bar, evaluations and samples above it, and a final table.

    On a terminal the bar stays at the bottom. Elsewhere (a file, a pipe, a notebook) there is one plain line per call,
    with no control codes. While the bar is up, logging handlers that write to the same terminal write above it.

    Args:
        config_tree: show the composed configuration when the run starts; a sweep's points leave it to their files.
    """

    def __init__(self, config_tree: bool):
        self.config_tree = config_tree
        self._terminal: Terminal | None = None
        self._progress: Progress | None = None
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._shown: dict[str, float] = {}
        self._best = math.inf

    def start(self, info: RunInfo) -> None:
        if self._terminal is None:
            is_terminal = sys.stdout.isatty()
            self._terminal = Terminal(width=None if is_terminal else _PLAIN_WIDTH, highlight=False)
        self._info = info
        self._clock = _Clock(info.total_steps)
        if self.config_tree and info.group is None:
            self._terminal.print(config_tree(info.config, info.name))
        self._print(_headline(info))
        if self._terminal.is_terminal:
            self._start_bar(info)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._clock.tick(step)
        self._shown |= metrics
        evaluation = {k.removeprefix("eval/"): v for k, v in metrics.items() if k.startswith("eval/")}
        if self._progress is None:
            self._print(self._plain_line(metrics, evaluation, step))
            return
        if evaluation:
            self._print(self._evaluation_line(evaluation, step))
        self._progress.update(self._task, completed=step)

    def text(self, name: str, value: str, *, step: int) -> None:
        self._print(Text.assemble((name, "bold"), (f"  step {step:,}", "dim")))
        self._print(Text(indent(_printable(value).strip("\n"), "  ") + "\n"))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._stop_bar()
        assert self._terminal is not None, "finish before start"
        self._terminal.print()
        self._terminal.print(summary_table(self._info.name, status, summary))
        path = os.path.relpath(self._info.run_dir)
        if path.startswith(".."):
            path = str(self._info.run_dir)
        self._print(Text.assemble(("everything is in ", "dim"), path))

    def abandon(self) -> None:
        self._stop_bar()

    # --- the bar ----------------------------------------------------------------------------------------------------

    def _start_bar(self, info: RunInfo) -> None:
        streams = (sys.stdout, sys.stderr)
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=None, style="bright_black", complete_style="cyan", finished_style="green"),
            _Column(self._loss),
            _Column(lambda: Text(self._speed(), "dim")),
            _Column(lambda: Text(self._memory(), "dim")),
            _Column(lambda: Text(self._clock.text(), "dim")),
            console=self._terminal,
            expand=True,
            refresh_per_second=2,
        )
        self._task: TaskID = self._progress.add_task("", total=info.total_steps, completed=info.resume_step)
        self._progress.start()
        # Handlers made before the bar hold the stream itself, and would write into the bar's line.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                self._handlers.append((handler, handler.stream))
                handler.setStream(sys.stdout if handler.stream is streams[0] else sys.stderr)

    def _stop_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers.clear()

    def _loss(self) -> Text:
        loss = self._shown.get("train/loss")
        return Text("starting" if loss is None else f"loss {loss:.4f}")

    def _speed(self) -> str:
        speed = self._shown.get("perf/tokens_per_s")
        return "" if speed is None else f"{_short(speed)} tok/s"

    def _memory(self) -> str:
        memory = self._shown.get("mem/peak_gb")
        return "" if memory is None else f"{memory:.2f} GB"

    # --- lines ------------------------------------------------------------------------------------------------------

    def _plain_line(self, metrics: Mapping[str, float], evaluation: Mapping[str, float], step: int) -> Text:
        parts = [f"step {step}/{self._info.total_steps}"]
        if "train/loss" in metrics:
            parts.append(f"loss {metrics['train/loss']:.4f}")
        parts += [f"{k} {metrics[f'train/{k}']:.4g}" for k in ("lr", "grad_norm") if f"train/{k}" in metrics]
        parts += [f"eval/{k} {v:.4f}" for k, v in evaluation.items()]
        parts += [self._speed(), self._memory(), self._clock.text()]
        return Text("  ".join(part for part in parts if part))

    def _evaluation_line(self, evaluation: Mapping[str, float], step: int) -> Text:
        line = Text.assemble(("eval", "bold"), (f"  step {step:,}", "dim"))
        for name, value in evaluation.items():
            line.append(f"   {name} ", "dim").append(f"{value:.4f}")
        if evaluation.get("loss", math.inf) < self._best:
            self._best = evaluation["loss"]
            line.append("   best", "green")
        return line

    def _print(self, what: Text) -> None:
        assert self._terminal is not None, "log before start"
        self._terminal.print(what, soft_wrap=True, highlight=False)


class _Clock:
    """Time since the start, and time left by the pace since the first log, which leaves the compilation out."""

    def __init__(self, total_steps: int):
        self._total = total_steps
        self._start = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def tick(self, step: int) -> None:
        self._last = (step, time.monotonic())
        self._first = self._first or self._last

    def left(self) -> float | None:
        if self._first is None or self._last is None or self._last[0] in (self._first[0], self._total):
            return None
        pace = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return max(0.0, (self._total - self._last[0]) * pace - (time.monotonic() - self._last[1]))

    def text(self) -> str:
        left = self.left()
        elapsed = duration(time.monotonic() - self._start)
        return elapsed if left is None else f"{elapsed}, {duration(left)} left"


class _Column(ProgressColumn):
    """A column of the bar that a function writes."""

    def __init__(self, text: Callable[[], Text]):
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        return self._text()


def config_tree(config: Mapping[str, Any], name: str = "config") -> Tree:
    """The configuration as a tree: groups as branches with the class that they build, settings as leaves."""
    tree = Tree(Text(name, style="bold"), guide_style="bright_black")
    _grow(tree, config, "", [])
    return tree


def _grow(
    tree: Tree, node: Mapping[str, Any] | Sequence[Any], path: str, drawn: list[tuple[Mapping[str, Any], str]]
) -> None:
    items = [(str(k), v) for k, v in (node.items() if isinstance(node, Mapping) else enumerate(node))]
    if path:
        # Settings before groups: a group's own settings would otherwise hang below its longest child. And small groups
        # before large ones, which are made of them and then only need to say so.
        items.sort(key=lambda item: _size(item[1]) if _is_branch(item[1]) else 0)
    for key, value in items:
        if key == "_target_" or key in _HYDRA_FLAGS:
            continue
        if not _is_branch(value):
            tree.add(Text.assemble((f"{key}  ", "dim"), _setting(value)))
            continue
        label = Text(key, style="cyan")
        here = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and "_target_" in value:
            if (where := next((w for v, w in drawn if v == value), None)) is not None:
                tree.add(label.append(f"  = {where}", "dim"))
                continue
            if any(k != "_target_" and k not in _HYDRA_FLAGS for k in value):
                drawn.append((value, here))
            label.append(f"  {value['_target_']}", "italic bright_black")
        _grow(tree.add(label), value, here, drawn)


def _size(node: Any) -> int:
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else []
    return 1 + sum(_size(child) for child in children)


def _is_branch(value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(value) > 0
    return isinstance(value, list | tuple) and any(isinstance(v, Mapping | list | tuple) for v in value)


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_setting(v) for v in value)}]"
    return (
        {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def summary_table(name: str, status: str, summary: Mapping[str, Any]) -> Table:
    """What came out of a run: every entry of its summary, in their order."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="")
    table.add_column(Text(name, style="bold"), style="dim")
    table.add_column(Text(status, style=f"bold {_STATUS_STYLE.get(status, '')}"), justify="right")
    for key, value in _flat(summary):
        if key != "status" and value is not None:
            table.add_row(key, _readable(key, value))
    return table


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _readable(key: str, value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-" if value is None else _printable(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if key.endswith("tokens_per_s"):
        return f"{value:,.0f}"
    if key.endswith("_gb"):
        return f"{value:.2f} GB"
    if key.endswith("_ms"):
        return f"{value:.1f} ms"
    if key.endswith("_s") and value < 60:
        return f"{value:.1f} s"
    if key.endswith(("_s", "seconds")):
        return duration(value)
    if key.endswith("mfu"):
        return f"{value:.1%}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.4g}"


def _headline(info: RunInfo) -> Text:
    parts = [" ".join(f"{k}={v}" for k, v in info.choices.items()), f"{info.total_steps:,} steps"]
    if ramp := info.record.get("ramp"):
        parts.append(ramp)
    if packing := (info.record.get("data") or {}).get("packing"):
        full = math.floor(1e4 * packing["efficiency"]) / 100  # 100 % is without padding, and nothing else
        parts.append(f"packed into {packing['rows']:,} rows, {full:.2f} % full")
    if info.resume_step:
        parts.append(f"resumed at {info.resume_step:,}")
    return Text(" · ".join(p for p in parts if p), style="dim")


def duration(seconds: float) -> str:
    """``m:ss`` or ``h:mm:ss``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def _short(number: float) -> str:
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(number) >= size:
            return f"{number / (1e3 if suffix == 'k' else size):.3g}{suffix}"
    return f"{number:.0f}"


def _printable(text: str) -> str:
    """A model of bytes may write escape codes, which would reach the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)
