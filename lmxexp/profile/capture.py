"""What Xcode shows of a step on a Mac's GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

_log = logging.getLogger(__name__)

VARIABLE = "MTL_CAPTURE_ENABLED"


def capture(path: Path, work: Callable[[], object]) -> bool:
    """Do ``work`` under a Metal capture, which Xcode opens; whether there is one. If not, the log says why.

    Args:
        path: where the capture goes, ``….gputrace``.
        work: what is captured. Called in a capture or not at all.

    Source: MLX's documentation, "Metal Debugger": ``mx.metal.start_capture`` and ``stop_capture``, in a process that
        was started with ``MTL_CAPTURE_ENABLED=1``.
    """
    if (reason := _reason(path)) is None:
        try:
            mx.metal.start_capture(str(path))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
    if reason is not None:
        _log.warning("train.profile_capture=%s: no capture is taken: %s", path, reason)
        return False
    try:
        work()
    finally:
        mx.metal.stop_capture()
    return True


def _reason(path: Path) -> str | None:
    """Why there can be no capture."""
    if not mx.metal.is_available():
        return "it takes a Mac's GPU, and MLX has no Metal here"
    if os.environ.get(VARIABLE) != "1":
        return f"Metal asks for {VARIABLE}=1 in the environment: {VARIABLE}=1 python -m lmxexp train.profile=true …"
    if path.exists():
        return "there is such a file already, which Metal does not overwrite"
    return None
