"""What every command does before its work, and with how that ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lmxexp.cli import errors


def run(work: Callable[[], int | None], report: Callable[[Exception], None]) -> int:
    """Do the work of a command; the exit code of its process.

    Args:
        work: returns an exit code, or None for 0.
        report: tells of an error.
    """
    try:
        code = work()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `… | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        report(error)
        return 1
    return code or 0


def run_composed(overrides: Sequence[str], work: Callable[[], int | None]) -> int:
    """`run`, of a command that composes a configuration from the user's overrides, and may be asked for tracebacks by
    one of them."""

    def among_modules_here() -> int | None:
        find_modules_here()
        return work()

    def report(error: Exception) -> None:
        errors.report(errors.describe(error), error if errors.traceback_wanted(overrides) else None)

    return run(among_modules_here, report)


def find_modules_here() -> None:
    """Let ``_target_: my_module.MyAttention`` be found in the directory where one stands, as ``python -m`` has it."""
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def report(error: Exception) -> None:
    """One line for what the user can mend, with a traceback for the rest."""
    if errors.is_config_error(error) or isinstance(error, OSError):
        errors.report(str(error))
    else:
        errors.report(f"{type(error).__name__}: {error}", error)
