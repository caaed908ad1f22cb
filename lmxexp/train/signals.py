"""Stopping runs between two steps."""

import signal
import threading
from types import FrameType
from typing import Any, ClassVar


class StopSignals:
    """While it is entered, SIGTERM and Ctrl-C ask for a stop instead of ending the process; asked twice, they end it.

    Several may be entered, and left in any order: a signal is for all of them. ``received`` is its number, or None.
    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    _entered: ClassVar[list["StopSignals"]] = []
    _before: ClassVar[dict[int, Any]] = {}

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            if not self._entered:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._before[number] = signal.signal(number, self._receive)
            self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self not in self._entered:
            return
        self._entered.remove(self)
        if not self._entered:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before.clear()

    @classmethod
    def _receive(cls, number: int, _frame: FrameType | None) -> None:
        if all(signals.received is not None for signals in cls._entered):
            raise KeyboardInterrupt
        for signals in cls._entered:
            signals.received = signals.received or number
