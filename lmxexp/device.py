"""What MLX runs on, and the memory it uses there.

Memory is in units of 1e9 bytes everywhere. MLX reports other keys for other devices (Metal a recommended working set,
CUDA the total memory, the CPU neither), so each is asked for, and None where it is not known.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx

GB = 1e9

_STILL_TO_COME = 2 * 10**8
"""Bytes of a process's address space that threads and compiled kernels take in its first step."""

_put_aside = 0
"""Bytes of the peak before the last `own_peak`, since the last reset."""

_mlx_limit: int | None = None
"""MLX's own limit in bytes, before there was another."""


def is_gpu() -> bool:
    """Whether MLX's default device is a GPU."""
    return mx.default_device().type == mx.gpu


def recommended_memory_gb() -> float | None:
    """The most that a run should use of the default device's memory: above it a Mac swaps or freezes.

    Metal's recommended working set, or all the memory of a CUDA device; None for a CPU, of which MLX says nothing.
    """
    if not is_gpu():
        return None
    info = mx.device_info(mx.default_device())
    size = info.get("max_recommended_working_set_size") or info.get("total_memory")
    return int(size) / GB if size else None


def memory_to_fit_gb() -> float | None:
    """What a run has to fit into: `recommended_memory_gb`, and for a CPU what this process may have of the machine's
    memory, which a container or ``ulimit -v`` may make less. An equal part of it where a sweep's processes share it."""
    of_all = [recommended_memory_gb()] if is_gpu() else [_host_memory_gb(), _container_memory_gb()]
    own = [] if is_gpu() else [_address_space_gb()]
    n = int(os.environ.get("LMXEXP_SHARING", "1"))
    known = [*(size / n for size in of_all if size is not None), *(size for size in own if size is not None)]
    return min(known, default=None)


def reset_peak_memory() -> None:
    """Starts a new measurement: peaks are the process's otherwise, and a sweep's jobs may share one."""
    global _put_aside
    _put_aside = 0
    mx.reset_peak_memory()


def in_gb(gb: float) -> str:
    """``"12.3 GB"``: three digits, and all before the point."""
    return f"{gb:.3g} GB" if gb < 999.5 else f"{gb:,.0f} GB"


def peak_memory_gb() -> float:
    """The most memory that MLX's arrays took since the last reset."""
    return max(_put_aside, mx.get_peak_memory()) / GB


@contextmanager
def own_peak() -> Iterator[None]:
    """What happens in here has a peak of its own: `peak_memory_gb` is as before once it is through.

    In here, `reset_peak_memory` and `peak_memory_gb` measure as they do anywhere.
    """
    global _put_aside
    before = max(_put_aside, mx.get_peak_memory())
    reset_peak_memory()
    try:
        yield
    finally:
        mx.reset_peak_memory()
        _put_aside = before


def wait() -> None:
    """On Metal, until all that was begun is computed; what failed is raised here at the latest.

    Commands that Metal ends, for want of memory or because they took too long, may leave arrays that pass for computed:
    not what reads them is told, but what uses the stream next. Elsewhere what reads an array is told.
    """
    if backend() == "metal":
        mx.synchronize()


def limit_memory(gb: float | None) -> None:
    """Let MLX wait for what it has under way before its arrays take more; None: where MLX does by itself.

    MLX makes the arrays of operations ahead of their computation. Beyond the limit it makes none until what was begun
    is through, which takes time and no more memory than there has to be. Nothing is refused, and MLX's own limit never
    raised.
    """
    global _mlx_limit
    if _mlx_limit is None:
        if gb is None:
            return
        _mlx_limit = mx.set_memory_limit(0)
    mx.set_memory_limit(_mlx_limit if gb is None else min(int(gb * GB), _mlx_limit))


def clear_cache() -> None:
    """Gives the memory that MLX keeps for later arrays back to the system."""
    mx.clear_cache()


def device_info() -> dict[str, Any]:
    """The machine, for a run's record: plain values that go into JSON, None where unknown."""
    info = mx.device_info(mx.default_device())
    size = info.get("memory_size") or info.get("total_memory")
    return {
        "default_device": str(mx.default_device()),
        "backend": backend(),
        "name": info.get("device_name"),
        "architecture": info.get("architecture"),
        "memory_gb": int(size) / GB if size else _host_memory_gb(),
        "recommended_memory_gb": recommended_memory_gb(),
        # What decides, beside the configuration, how products and attention are rounded; see README, "On a GPU".
        "tf32": os.environ.get("MLX_ENABLE_TF32", "1") != "0",
        "cudnn_attention": os.environ.get("MLX_CUDA_USE_CUDNN_SDPA", "1") != "0" if backend() == "cuda" else None,
        "cpu": mx.device_info(mx.cpu).get("device_name") or platform.processor() or None,
        "cpu_cores": _cpu_cores(),
        "os": platform.platform(),
        "python": platform.python_version(),
    }


def backend() -> str:
    """``cpu``, ``metal``, ``cuda``, or ``gpu`` for what is none of them."""
    if not is_gpu():
        return "cpu"
    if mx.metal.is_available():
        return "metal"
    return "cuda" if mx.cuda.is_available() else "gpu"


def _cpu_cores() -> int | None:
    # A container or a batch system may give this process fewer cores than the machine has.
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _host_memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GB
    except (ValueError, OSError, AttributeError):  # names that this system does not have
        return None


def _container_memory_gb() -> float | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text()) / GB
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _address_space_gb() -> float | None:
    """What is left of it, where it is limited."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most == resource.RLIM_INFINITY:
            return None
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError, ValueError):  # Windows has no limits, macOS no such file
        return None
    return max(most - taken - _STILL_TO_COME, 0) / GB
