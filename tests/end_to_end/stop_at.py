"""A callback that sends its own process a signal."""

import os
import signal


class StopAt:
    """After step ``at``, between its line in the log and the next step or, ``early``, before its evaluation."""

    at_end = False

    def __init__(self, at: int, early: bool = False, kill: bool = False):
        self.every, self.after_log = at, not early
        self.at, self.number = at, signal.SIGKILL if kill else signal.SIGTERM

    def __call__(self, trainer):
        if trainer.step == self.at and trainer.clock.steps:  # not again in the process that resumes
            os.kill(os.getpid(), self.number)
        return {}
