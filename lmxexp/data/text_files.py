"""Local text files as one document."""

import codecs
import functools
import glob
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lmxexp.data.corpus import Corpus, check_fraction, cut, fingerprint_of, pieces
from lmxexp.interfaces import ConfigError


def corpus_of_files(path: str | list[str], val_path: str | list[str] | None, val_fraction: float) -> Corpus:
    """The files of ``path``, one after the other with nothing in between, as a corpus.

    They are read in pieces, so that they may be larger than memory. Files whose names end in ``.gz``, ``.bz2``, ``.xz``
    or ``.zst`` are decompressed on the way.

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
            train=lambda: pieces(chunks("data.path", files)),
            validation=lambda: pieces(chunks("data.val_path", val_files)),
            fingerprint=fingerprint_of("files", _digest("data.path", files), _digest("data.val_path", val_files)),
            origin={"files": _names(files), "val_files": _names(val_files)},
        )
    n_chars = functools.cache(lambda: sum(map(len, chunks("data.path", files))))
    train, validation = cut(lambda: pieces(chunks("data.path", files)), n_chars, val_fraction)
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


def chunks(key: str, files: Iterable[Path | str]) -> Iterator[str]:
    """The text of the files, a megabyte at a time.

    Args:
        key: the setting that names them.
        files: local paths, or addresses that ``fsspec`` knows.

    Raises:
        ConfigError: for a file that cannot be read or is not UTF-8 text.
    """
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        passed = 0
        try:
            with _opened(key, file) as stream:
                while True:
                    block = stream.read(1 << 20)
                    if (at := block.find(b"\0")) >= 0:
                        raise ConfigError(
                            f"{key}={file} is a binary file (a NUL byte at {passed + at}): give a UTF-8 text file"
                        )
                    pending = len(decoder.getstate()[0])
                    try:
                        text = decoder.decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        raise ConfigError(
                            f"{key}={file} is not UTF-8 text (at byte {passed - pending + error.start}): convert it, "
                            "for instance with iconv"
                        ) from error
                    if text:
                        yield text
                    if not block:
                        break
                    passed += len(block)
        except (OSError, EOFError) as error:  # EOFError: a compressed file that was cut short
            raise _unreadable(key, file, error) from error


def _opened(key: str, file: Path | str) -> IO[bytes]:
    name = str(file)
    if "://" not in name and not name.endswith((".gz", ".bz2", ".xz", ".zst")):
        return open(name, "rb")
    import fsspec
    from fsspec.utils import infer_compression

    if name.endswith(".zst") and infer_compression(name) is None:
        raise ConfigError(
            f"{key}={file} is compressed with zstd, which Python reads with a package: pip install zstandard"
        )
    return fsspec.open(name, "rb", compression="infer").open()  # pyright: ignore


def _unreadable(key: str, file: Path | str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return ConfigError(f"{key}={file} cannot be read ({reason}): make it readable")


def _digest(key: str, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise _unreadable(key, file, error) from error
    return digest.hexdigest()


def _names(files: list[Path]) -> Any:
    # A record of ten thousand names helps nobody.
    return [str(f.absolute()) for f in files[:20]] + ([f"and {len(files) - 20} more"] if len(files) > 20 else [])
