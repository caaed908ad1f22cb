"""Local text files as one string."""

import functools
import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmxexp.data.corpus import Corpus, check_fraction, cut, fingerprint_of
from lmxexp.interfaces import ConfigError


def corpus_of_files(path: str | list[str], val_path: str | list[str] | None, val_fraction: float) -> Corpus:
    """The files of ``path``, one after the other with nothing in between, as a corpus.

    Args:
        path: a file, a pattern such as ``books/**/*.txt`` (in the order of the names), or a list of either.
        val_path: the same of the text to validate on; None: the end of ``path``.
        val_fraction: the share of the characters that validates, if ``val_path`` is None.

    Raises:
        ConfigError: for a path that is missing, a directory, empty or not UTF-8 text.
    """
    check_fraction(val_fraction)
    files = find_files("data.path", path)
    if val_path is not None:
        val_files = find_files("data.val_path", val_path)
        return Corpus(
            train=lambda: [_read("data.path", files)],
            validation=lambda: [_read("data.val_path", val_files)],
            fingerprint=fingerprint_of("files", _digest("data.path", files), _digest("data.val_path", val_files)),
            origin={"files": _names(files), "val_files": _names(val_files)},
        )
    # Read once for both splits and a learned tokenizer, and not at all where the tokens are cached.
    text = functools.cache(lambda: _read("data.path", files))
    train, validation = cut(lambda: [text()], lambda: len(text()), val_fraction)
    return Corpus(
        train=train,
        validation=validation,
        fingerprint=fingerprint_of("files", _digest("data.path", files), val_fraction),
        origin={"files": _names(files)},
    )


def find_files(key: str, path: str | Sequence[str]) -> list[Path]:
    """The files that a setting names. Empty ones are an error, but for those that a pattern brings along."""
    patterns = [path] if isinstance(path, str) else list(path)
    if not patterns or not all(patterns):
        raise ConfigError(f"{key}={path!r} names no file: give the path of a text file")
    files: list[Path] = []
    for pattern in patterns:
        literal = Path(pattern).expanduser()
        if literal.is_dir():
            raise ConfigError(f"{key}={pattern} is a directory: give a file, or a pattern such as {pattern}/*.txt")
        if literal.exists():
            if literal.is_file() and literal.stat().st_size == 0:
                raise ConfigError(f"{key}={pattern} is empty: give a file with text in it")
            files.append(literal)
            continue
        if not glob.has_magic(pattern):
            raise ConfigError(f"{key}={pattern} does not exist: give the path of a text file")
        found = [Path(p) for p in sorted(glob.glob(str(literal), recursive=True))]
        found = [p for p in found if p.is_file() and p.stat().st_size > 0]
        if not found:
            raise ConfigError(f"{key}={pattern} matches no file with text in it: check the pattern, and quote it")
        files += found
    return files


def _read(key: str, files: list[Path]) -> str:
    return "".join(_read_file(key, file) for file in files)


def _read_file(key: str, file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key}={file} cannot be read ({error.strerror}): make it readable") from error
    if (at := data.find(b"\0")) >= 0:
        raise ConfigError(f"{key}={file} is a binary file (a NUL byte at {at}): give a UTF-8 text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{key}={file} is not UTF-8 text (at byte {error.start}): convert it, for instance with iconv"
        ) from error


def _digest(key: str, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise ConfigError(f"{key}={file} cannot be read ({error.strerror}): make it readable") from error
    return digest.hexdigest()


def _names(files: list[Path]) -> Any:
    # A record of ten thousand names helps nobody.
    return [str(f.absolute()) for f in files[:20]] + ([f"and {len(files) - 20} more"] if len(files) > 20 else [])
