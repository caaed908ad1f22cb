"""What is said when something is wrong: one message, no traceback unless it was asked for."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn


def refuse(problems: str | list[str]) -> NoReturn:
    """Raise one `ConfigError` with all the problems.

    Imported here because ``lmxexp.interfaces`` imports MLX, which ``--cfg job`` can do without.
    """
    from lmxexp.interfaces import ConfigError

    if isinstance(problems, str):
        problems = [problems]
    if len(problems) == 1:
        raise ConfigError(problems[0])
    raise ConfigError(f"{len(problems)} settings cannot work:\n" + "\n".join(f"  {p}" for p in problems))


def near(word: str, known: Iterable[str]) -> str | None:
    """The known word that was most likely meant."""
    known = list(known)
    close = difflib.get_close_matches(word, known, 1, cutoff=0.6)
    if close:
        return close[0]
    longer = [k for k in known if len(word) >= 3 and k.startswith(word)]
    return min(longer, key=len) if longer else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean gqa?``, or nothing."""
    close = near(word, known)
    return f"; did you mean {close}?" if close else ""


def is_config_error(error: BaseException) -> bool:
    """Whether the message is meant for the user as it stands."""
    from lmxexp.interfaces import ConfigError

    return isinstance(error, ConfigError)


def describe(error: BaseException, traceback_file: Path | None = None) -> str:
    """The message of a `ConfigError`; of any other error its type too, and how to see where it came from."""
    if is_config_error(error):
        return str(error)
    where = f"see {traceback_file}" if traceback_file else "debug.traceback=true shows where"
    return f"{type(error).__name__}: {' '.join(str(error).split()) or '(no message)'} ({where})"


def write_traceback(error: BaseException, run_dir: Path) -> Path | None:
    """Leave the whole traceback of an unexpected error in the run's directory."""
    file = run_dir / "traceback.txt"
    try:
        file.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:  # the disk may be what failed
        return None
    return file


def report(message: str, error: BaseException | None = None) -> None:
    """Print the message to stderr, after the whole traceback of ``error`` if one is given."""
    sys.stdout.flush()
    if error is not None:
        traceback.print_exception(error)
    print(f"lmxexp: error: {message}", file=sys.stderr, flush=True)


def traceback_wanted(overrides: Iterable[str]) -> bool:
    """Whether the command line asks for tracebacks, before there is a configuration to ask."""
    asked = {"debug.traceback=true", "debug=default"}
    return any(o.lstrip("+").lower() in asked for o in overrides)
