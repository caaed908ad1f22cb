"""The source text of the Python standard library that runs this: real text that every machine has."""

import functools
import hashlib
import io
import os
import platform
import sysconfig
import tokenize
from collections.abc import Callable
from pathlib import Path

from lmxexp.data.corpus import Corpus, check_fraction, fingerprint_of
from lmxexp.data.token_stream import Order, Packing, TokenStream
from lmxexp.interfaces import ConfigError, Tokenizer

# Tests (and with them the fixtures of lib2to3), installed packages, and what differs from build to build.
_LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")


class PythonStdlib(TokenStream):
    """Every file is a document, in the order of the names; whole files are held out for validation.

    Which ones is decided by a hash of the name, so the same file is held out on every machine with the same Python,
    and nearly the same ones from version to version.

    Args:
        tokenizer: factory of the tokenizer.
        val_fraction: the share of the bytes that validates, about; 0.009 of 12 MB is 108 kB.
        seq_len: L, tokens in one sequence.
        batch_size: B, sequences in one global batch.
        seed: of the order of the data.
        max_eval_tokens: targets to evaluate at most; None: the whole validation split.
        cache_dir: directory of token files and learned tokenizers.
        document_mask, packing, order: see `TokenStream`.

    Raises:
        ConfigError: where the interpreter ships no sources; see also `TokenStream`.
    """

    def __init__(
        self,
        tokenizer: Callable[..., Tokenizer],
        seq_len: int,
        batch_size: int,
        val_fraction: float = 0.009,
        seed: int = 0,
        max_eval_tokens: int | None = None,
        cache_dir: str = "~/.cache/lmxexp",
        document_mask: bool = False,
        packing: Packing = "stream",
        order: Order = "random",
    ):
        super().__init__(
            _kept_corpus(stdlib_root(), val_fraction),
            tokenizer=tokenizer,
            seq_len=seq_len,
            batch_size=batch_size,
            seed=seed,
            max_eval_tokens=max_eval_tokens,
            cache_dir=cache_dir,
            document_mask=document_mask,
            packing=packing,
            order=order,
        )


def stdlib_root() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def stdlib_corpus(root: Path, val_fraction: float) -> Corpus:
    """The ``.py`` files under ``root``, cut in two."""
    check_fraction(val_fraction)
    files = {name: data for name in _source_files(root) if (data := (root / name).read_bytes())}
    if not files:
        raise ConfigError(
            f"data=python_stdlib finds no Python sources under {root}: this interpreter ships without them; take "
            "another Python, or data=text data.path=FILE"
        )
    held_out = _held_out({name: len(data) for name, data in files.items()}, val_fraction)
    digest = hashlib.sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    return Corpus(
        train=lambda: (_decode(data) for name, data in files.items() if name not in held_out),
        validation=lambda: (_decode(data) for name, data in files.items() if name in held_out),
        fingerprint=fingerprint_of("python_stdlib", digest.hexdigest(), sorted(held_out)),
        origin={
            "python": platform.python_version(),
            "root": str(root),
            "train_files": len(files) - len(held_out),
            "validation_files": len(held_out),
        },
    )


# A sweep asks twice a point, and the library of a running interpreter stays as it is.
_kept_corpus = functools.lru_cache(maxsize=1)(stdlib_corpus)


def _source_files(root: Path) -> list[str]:
    """Names relative to ``root``, with slashes, sorted."""
    names = []
    for directory, subdirectories, files in os.walk(root):
        # In place, so that installed packages, far larger than the library, are not walked.
        subdirectories[:] = [d for d in subdirectories if d not in _LEFT_OUT and not d.startswith(_LEFT_OUT_PREFIXES)]
        parent = Path(directory).relative_to(root).as_posix()
        prefix = "" if parent == "." else f"{parent}/"
        names += [prefix + file for file in files if file.endswith(".py") and not file.startswith(_LEFT_OUT_PREFIXES)]
    return sorted(names)


def _held_out(sizes: dict[str, int], val_fraction: float) -> set[str]:
    """Files in the order of the hashes of their names, until 95 % of the share is full; too large ones are passed by,
    so the split never exceeds its share and the time of an evaluation is known."""
    budget = val_fraction * sum(sizes.values())
    held_out: set[str] = set()
    size = 0
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size >= 0.95 * budget:
            break
        if size + sizes[name] <= budget:
            held_out.add(name)
            size += sizes[name]
    return held_out


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return data.decode(encoding, errors="replace")
