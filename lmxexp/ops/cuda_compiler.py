"""CUDA sources to machine code by NVIDIA's run-time compiler, which comes with MLX, and a cache of it on disk.

MLX compiles a custom kernel in every process anew, half a second to two seconds each, with all of its own headers. What
is compiled here once is there for the next process.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

_MAJOR, _MINOR = 75, 76
"""The numbers of a device's attributes in CUDA's driver API that say what it can do."""


class CompileError(RuntimeError):
    """What the compiler says."""


def binary_of(source: str) -> bytes | None:
    """Machine code for the first device; None: there is no compiler, no device, or it does not get through.

    Args:
        source: of an ``extern "C"`` kernel. ``cuda_bf16.h`` and ``cuda_fp16.h`` are there.
    """
    found, made_for = compiler(), architecture()
    if found is None or made_for is None:
        return None
    library, _ = found
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    key = f"{major.value}.{minor.value} {made_for}\n{source}"
    file = _directory() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.cubin"
    try:
        return file.read_bytes()
    except OSError:
        pass
    try:
        binary, _ = compile(source, made_for)
    except CompileError:
        return None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(binary)
        part.replace(file)  # whole or not there, as several processes may be at it
    except OSError:
        pass  # it is compiled again the next time
    return binary


def compile(source: str, architecture: str, *options: str) -> tuple[bytes, str]:
    """Machine code, and what the compiler said.

    Args:
        architecture: such as ``sm_90``.

    Raises:
        CompileError: the source is wrong, or there is no compiler.
    """
    found = compiler()
    if found is None:
        raise CompileError("NVIDIA's run-time compiler is not installed")
    library, headers = found
    program = ctypes.c_void_p()
    if library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None):
        raise CompileError("the compiler could not be started")
    try:
        given = [f"--gpu-architecture={architecture}", f"-I{headers}", "--std=c++17", *options]
        arguments = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        failed = library.nvrtcCompileProgram(program, len(given), arguments)
        log = _read(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program).decode(errors="replace")
        if failed:
            raise CompileError(log)
        return _read(library.nvrtcGetCUBINSize, library.nvrtcGetCUBIN, program), log.rstrip("\0")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: Any, read: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    read(program, buffer)
    return buffer.raw


@cache
def compiler() -> tuple[Any, Path] | None:
    """The library and CUDA's headers, from the packages that MLX's CUDA backend depends on; None: not there."""
    for library, headers in _places():
        try:
            for builtins in sorted(library.parent.glob("libnvrtc-builtins.so.*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # the library looks for it elsewhere
            return ctypes.CDLL(str(library)), headers
        except OSError:
            continue
    return None


def _places() -> Iterator[tuple[Path, Path]]:
    package = importlib.util.find_spec("nvidia")
    for root in map(Path, (package and package.submodule_search_locations) or []):
        headers = next((file.parent for file in sorted(root.glob("*/include/cuda_bf16.h"))), None)
        if headers is not None:
            for library in sorted(root.glob("*/lib/libnvrtc.so.*"), reverse=True):
                yield library, headers


@cache
def architecture() -> str | None:
    """Of the first device, such as ``sm_90``; None: there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, values = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    for value, attribute in zip(values, (_MAJOR, _MINOR), strict=True):
        failed = failed or driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
    return None if failed else f"sm_{values[0].value}{values[1].value}"


def _directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmxexp" / "cuda"
