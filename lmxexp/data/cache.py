"""Files that take long to make and can be made again: token streams, learned tokenizers, downloads."""

import os
import secrets
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

_warned: set[Path] = set()


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call ``write`` on a file of a temporary name beside ``path``, then rename it.

    A reader sees the whole file or none, and of two writers the later one wins.

    Raises:
        OSError: where the file cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def warn_unwritable(cache_dir: Path, error: OSError) -> None:
    """Warn, once for each directory and process, that nothing can be kept."""
    if cache_dir in _warned:
        return
    _warned.add(cache_dir)
    warnings.warn(
        f"data.cache_dir={cache_dir} cannot be written ({error.strerror or error}): tokens stay in memory and are made "
        "again by the next run; set data.cache_dir or LMXEXP_CACHE to a directory with room",
        RuntimeWarning,
        stacklevel=2,
    )
