"""A shorter wait for the kernels that MLX has compiled on a Linux CPU.

There every fused kernel of a new design goes through g++, two thirds of a second each, nearly all of it for one header
of MLX's. Precompiled, once for each version of MLX, it leaves a quarter of that. GCC looks for it beside the file that
includes it, which is MLX's directory of kernels; where it is not, or does not fit, the header itself is read as ever.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from lmxexp import device

HEADER = "mlx/backend/cpu/compiled_preamble.h"
FLAGS = ("-std=c++17", "-O3", "-fPIC")
"""MLX's own: with others GCC would not take it."""


def place() -> Path:
    """Where GCC looks for it: below the directory that MLX compiles its kernels in."""
    return Path(tempfile.gettempdir(), "mlx", version("mlx"), "cpu", f"{HEADER}.gch")


def precompile_header() -> subprocess.Popen | None:
    """Begin to precompile MLX's header, in a process of its own that outlives this one (3 s, 50 MB of temporary files).

    Returns:
        The process; None: it is there already, someone else is at it, there is nothing to do, or the environment's
        ``LMXEXP_PRECOMPILE`` is 0.
    """
    if sys.platform != "linux" or device.is_gpu() or os.environ.get("LMXEXP_PRECOMPILE") == "0":
        return None
    compiler, include = shutil.which("g++"), Path(mx.__file__).parent / "include"
    target = place()
    if compiler is None or not (include / HEADER).is_file() or target.exists():
        return None
    if any(time.time() - path.stat().st_mtime < 60 for path in target.parent.glob(f"{target.name}.*")):
        return None
    part = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, *FLAGS, "-I", str(include), "-x", "c++-header", str(include / HEADER), "-o", str(part)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A shell puts it in its place, whether or not this process is still there then.
        script = 'out=$1; to=$2; shift 2; "$@" 2>/dev/null && mv "$out" "$to" || rm -f "$out"'
        return subprocess.Popen(
            ["sh", "-c", script, "sh", str(part), str(target), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:  # a directory that is not ours: it is no more than a convenience
        return None
