"""Several loggers as one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from lmxexp.interfaces import ConfigError, Logger, RunInfo
from lmxexp.logger.jsonl import Jsonl

_log = logging.getLogger(__name__)


class Loggers:
    """Calls each logger in turn, in the order of the configuration, and keeps their failures away from the training.

    A logger that raises is switched off with one line of warning. `Jsonl` is the exception: its file is the truth that
    the others mirror, so a run that cannot write it stops. A logger may have a method ``abandon()``, which is called
    when it is switched off: it lets go of the terminal, processes and connections without waiting.

    Args:
        loggers: name to logger, as in ``conf/logger``.

    Raises:
        ConfigError: from ``start``, where a logger says that a setting cannot work.
        OSError: where `Jsonl` cannot write.
    """

    seconds: float
    """Time spent in all loggers so far: what a benchmark of the training leaves out."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self.seconds = 0.0
        self._active = dict(loggers)

    def start(self, info: RunInfo) -> None:
        self._each(lambda logger: logger.start(info), setting_up=True)

    def log(self, metrics: Mapping[str, float], *, step: int) -> None:
        self._each(lambda logger: logger.log(metrics, step=step))

    def text(self, name: str, value: str, *, step: int) -> None:
        self._each(lambda logger: logger.text(name, value, step=step))

    def finish(self, status: str, summary: Mapping[str, Any]) -> None:
        self._each(lambda logger: logger.finish(status, summary))

    def _each(self, call: Callable[[Logger], None], setting_up: bool = False) -> None:
        began = time.perf_counter()
        try:
            for name, logger in list(self._active.items()):
                try:
                    call(logger)
                except Exception as error:
                    if isinstance(logger, Jsonl) or (setting_up and isinstance(error, ConfigError)):
                        raise
                    self._switch_off(name, logger, error)
        finally:
            self.seconds += time.perf_counter() - began

    def _switch_off(self, name: str, logger: Logger, error: Exception) -> None:
        del self._active[name]
        if abandon := getattr(logger, "abandon", None):
            with suppress(Exception):
                abandon()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("logger %s failed and is off for the rest of this run, which goes on: %s", name, reason)
