"""What a run has to remember of its surroundings to be understood, and repeated, later."""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lmxexp import blas, device

PACKAGES = ("lmxexp", "mlx", "hydra-core", "omegaconf", "wandb", "datasets", "numpy", "tokenizers")
"""Whose versions can change what a run computes or logs."""

GIT_TIMEOUT_S = 3.0
"""A repository on a slow network disk is not waited for."""


def environment_record(argv: Sequence[str]) -> dict[str, Any]:
    """Code, packages, machine and command line as plain values for ``run.json``.

    Records are shared, so the machine's name is left out, and the home directory is written ``~``.

    Args:
        argv: as in ``sys.argv``.
    """
    blas_facts = asdict(blas.which())
    if blas_facts["path"]:
        blas_facts["path"] = blas_facts["path"].replace(str(Path.home()), "~", 1)
    return {
        "command": command_line(argv),
        "git": git_state(Path.cwd()),
        "packages": {name: version_of(name) for name in PACKAGES},
        "device": device.device_info(),
        "blas": blas_facts,
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit that a directory's repository is at, and whether its files are those of the commit.

    Returns:
        ``commit`` (None before the first), ``dirty`` (tracked files were changed) and ``untracked`` (files and folders
        that git neither tracks nor ignores; a kind of the user's own may be among them). None where there is no
        repository, no git, or no answer in time.
    """
    # One command for all of it. No lock is taken, as other runs may be starting, and no monitor of the user's started.
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=GIT_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    lines = done.stdout.splitlines()
    commit = next(
        (line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")), "(initial)"
    )
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(line[0] in "12u" for line in lines if line),
        "untracked": sum(line.startswith("? ") for line in lines),
    }


def command_line(argv: Sequence[str]) -> str:
    """The command line as it can be typed again; where Python found the program is left out."""
    if not argv:
        return ""
    program = Path(argv[0])
    start = ["python", "-m", _package(program.parent)] if program.name == "__main__.py" else [program.name]
    return shlex.join([*start, *argv[1:]])


def _package(directory: Path) -> str:
    """``lmxexp.bench`` for its directory."""
    names = [directory.name]
    while (directory / "__init__.py").exists() and ((directory := directory.parent) / "__init__.py").exists():
        names.insert(0, directory.name)
    return ".".join(names)


@functools.cache  # a sweep's points start in one process
def version_of(package: str) -> str | None:
    """Of an installed package; None: it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
