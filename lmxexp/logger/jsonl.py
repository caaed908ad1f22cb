"""The record of a run's metrics, and its reader."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmxexp.interfaces import ConfigError, RunInfo

FILE_NAME = "metrics.jsonl"


class Jsonl:
    """``metrics.jsonl`` in the run directory: ``{"step": …, **metrics}``, one JSON object per call.

    A float is written with the digits that give back the same bits, so the file of a resumed run is byte for byte that
    of an uninterrupted one, as far as its metrics are. JSON knows no infinities and no NaN: they are the strings
    ``"nan"``, ``"inf"`` and ``"-inf"``, which `read_metrics` (and Python's ``float``) turn back.

    Every line reaches the operating system before ``log`` returns: a killed process loses none. A resumed run drops
    the lines after the step that it resumes from, and a line that was cut short; the others are not touched.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._run_dir: Path | None = None
        self._fd: int | None = None

    def start(self, info: RunInfo) -> None:
        self._run_dir, self._path = info.run_dir, info.run_dir / FILE_NAME
        # A run that was killed before its first checkpoint resumes from step 0.
        resumed = info.resume_step > 0 or bool(info.config.get("resume"))
        if not resumed and self._path.exists() and self._path.stat().st_size > 0:
            raise ConfigError(
                f"hydra.run.dir={info.run_dir} holds the {FILE_NAME} of another run: "
                f"choose another directory, or go on with that run by resume={info.run_dir}"
            )
        try:
            if resumed and self._path.exists():
                _cut(self._path, info.resume_step)
            self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._cannot_write(error) from error

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        assert self._fd is not None, "log before start"
        assert "step" not in metrics
        line = json.dumps({"step": step} | {k: _to_json(v) for k, v in metrics.items()}, allow_nan=False)
        rest = memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise self._cannot_write(error) from error

    def text(self, name: str, value: str, *, step: int) -> None:
        """Nothing: texts are no metrics; whoever makes them keeps them in a file of their own."""

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _cannot_write(self, error: OSError) -> OSError:
        reason = error.strerror or str(error)
        return OSError(
            error.errno, f"cannot write {self._path}: {reason}; free space and go on with resume={self._run_dir}"
        )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Reads a ``metrics.jsonl``: one dict per line, infinities and NaN as floats. A line cut short at the end of the
    file is left out.

    Raises:
        ConfigError: a line before the last is no JSON object with a step.
    """
    lines, _ = _read_lines(path)
    return [{k: float(v) if isinstance(v, str) else v for k, v in line.items()} for line in lines]


def _to_json(value: float) -> float | str:
    number = value if isinstance(value, int) else float(value)
    return number if math.isfinite(number) else str(number)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The objects of the file, and where in the file each of them ends."""
    lines: list[dict[str, Any]] = []
    ends: list[int] = []
    end = 0
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        end += len(raw)
        if not raw.endswith(b"\n"):
            break
        try:
            line = json.loads(raw)
            int(line["step"])
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path} is damaged: line {number} is no JSON object with a step; "
                f"remove that line and those after it, then resume from an earlier checkpoint"
            ) from None
        lines.append(line)
        ends.append(end)
    return lines, ends


def _cut(path: Path, last_step: int) -> None:
    """Removes what comes after ``last_step``. Either the old file or the new one is there, whenever it is cut off."""
    lines, ends = _read_lines(path)
    kept = next((i for i, line in enumerate(lines) if line["step"] > last_step), len(lines))
    size = ends[kept - 1] if kept else 0
    if size == path.stat().st_size:
        return
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(path.read_bytes()[:size])
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
