"""Gives MLX's CPU backend on Linux a fast BLAS, and says which one it has.

MLX's CPU wheel for Linux computes matrix products with the reference BLAS that it bundles, some 20 times slower than
OpenBLAS on two cores. It looks the three functions that it calls up by name when it is loaded, and a library loaded
before it for everyone to see wins. So `load`, which ``import lmxexp`` calls, loads OpenBLAS and publishes those three
names, before anything imports ``mlx.core``. macOS and MLX's CUDA backend are left alone.

The environment variable ``LMXEXP_BLAS`` chooses:

* ``auto`` (or unset): a system OpenBLAS, else the one of the ``scipy-openblas32`` package, else MLX's own;
* ``system`` or ``scipy``: that one, or an error;
* ``off``: MLX's own;
* a path with a slash in it: that shared library, which must have 32-bit integers.

OpenBLAS takes as many threads as there are cores, unless its own ``OPENBLAS_NUM_THREADS`` says otherwise. Set it to 1
where several runs share the cores: threads that wait for each other's turn make a step several times slower.

How the names are published: the package's functions carry a prefix (``scipy_cblas_sgemm``) that MLX does not know,
and a system library holds hundreds of names that other libraries of the process may want from elsewhere. Therefore
OpenBLAS is loaded privately, and a shared object of 500 bytes, made in memory, says that ``cblas_sgemm`` is *at that
address*. It is a symbol table and holds no code, so it needs no compiler, no cache on the disk, and no cleaning up.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FUNCTIONS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""What MLX calls of BLAS by its C interface. Its LAPACK has a BLAS of its own and is not touched."""

# Fedora's libopenblas.so.0 has one thread, its libopenblasp.so.0 many; elsewhere the first name does not exist.
# Names that end in 64 or 64_ take 64-bit integers, and MLX passes 32-bit ones.
_SYSTEM_NAMES = ("libopenblasp.so.0", "libopenblas.so.0", "libopenblas.so")
_MEND = "pip install scipy-openblas32"


@dataclass(frozen=True)
class Blas:
    """The library that computes MLX's matrix products on the CPU."""

    kind: str
    """openblas-system, openblas-scipy, mkl, blis, reference (slow), accelerate (macOS), cuda or unknown."""
    path: str | None = None
    version: str | None = None
    """Its own description of itself, where it has one."""
    threads: int | None = None


@dataclass(frozen=True)
class _Outcome:
    problem: str | None = None
    """Why MLX is left with its own BLAS."""
    is_error: bool = False
    """The user asked for something that cannot be had."""


_outcome: _Outcome | None = None


def load() -> None:
    """Puts a fast BLAS in front of MLX's own, once; later calls do nothing.

    Costs some 30 ms, imports neither MLX nor NumPy, and never raises, since it runs inside ``import lmxexp``: what
    went wrong is said by `warning`.
    """
    global _outcome
    if _outcome is None:
        _outcome = _load(os.environ.get("LMXEXP_BLAS") or "auto")


def warning() -> str | None:
    """One line for the start of a run if products will be slow, with the mend; None if all is well.

    Raises:
        ConfigError: ``LMXEXP_BLAS`` names what does not exist or cannot be loaded.
    """
    outcome = _outcome or _Outcome("lmxexp.blas.load() was not called; call it before mlx.core is imported")
    if outcome.is_error:
        from lmxexp.interfaces import ConfigError

        raise ConfigError(outcome.problem)
    if which().kind != "reference":
        return None
    reason = outcome.problem or "MLX did not take the BLAS that was loaded for it"
    return f"matrix products will be slow, as MLX's CPU backend has only its reference BLAS: {reason}"


def which() -> Blas:
    """The BLAS that MLX really uses: looked up in this process as the dynamic loader does it, not assumed."""
    import mlx.core as mx

    if sys.platform != "linux":
        return Blas("accelerate")
    if mx.cuda.is_available():
        return Blas("cuda")
    # The global scope is searched before the libraries that libmlx.so itself is linked with.
    function = _global_sgemm()
    if function is None:
        function = getattr(ctypes.CDLL(mx.__file__, os.RTLD_NOW | os.RTLD_NOLOAD), FUNCTIONS[0], None)
    if function is None:
        return Blas("unknown")
    path = _object_of(function)
    library = ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_NOLOAD)
    for prefix, kind in (("scipy_", "openblas-scipy"), ("", "openblas-system")):
        if (config := _openblas_config(library, prefix)) is not None:
            return Blas(kind, path, config, int(getattr(library, f"{prefix}openblas_get_num_threads")()))
    for symbol, kind in (("MKL_Get_Version", "mkl"), ("bli_info_get_version_str", "blis")):
        if hasattr(library, symbol):
            return Blas(kind, path)
    return Blas("reference", path, threads=1)


def measure(dtype: Any = None, *, max_size: int = 8192, budget_s: float = 0.25) -> float:
    """GFLOP/s of a square matrix product on MLX's default device: the peak that model FLOPs utilisation is against.

    The best of `measure_by_size`, which says more.
    """
    return max(measure_by_size(dtype, max_size=max_size, budget_s=budget_s).values())


def measure_by_size(dtype: Any = None, *, max_size: int = 8192, budget_s: float = 0.25) -> dict[int, float]:
    """GFLOP/s of square matrix products on MLX's default device, by the number of rows.

    Starts at 256 rows and doubles them whenever a few products of the next size fit into the time that is left: a slow
    BLAS is not waited for, a fast GPU is filled. All the time is spent, as the threads of another library (NumPy's
    linear algebra) may hold the cores for its first 100 ms.

    Args:
        dtype: of the matrices; fp32 if None.
        max_size: most rows; three such matrices have to fit in memory.
        budget_s: seconds to spend.

    Returns:
        The best product's of each size. MLX's random state is left as it is, its peak memory is not.
    """
    import mlx.core as mx

    def matrices(size: int) -> tuple[mx.array, ...]:
        pair = tuple(mx.random.normal((size, size), key=mx.random.key(i)).astype(dtype or mx.float32) for i in (0, 1))
        mx.eval(pair)
        return pair

    deadline = time.perf_counter() + budget_s
    size, shortest = 256, float("inf")
    found: dict[int, float] = {}
    a, b = matrices(size)
    while (start := time.perf_counter()) < deadline or not found:
        if size < max_size and start + 4 * 8 * shortest < deadline:
            size, shortest = 2 * size, float("inf")
            a, b = matrices(size)
        start = time.perf_counter()
        mx.eval(a @ b)
        shortest = min(shortest, time.perf_counter() - start)
        found[size] = 2 * size**3 / shortest / 1e9
    return found


# --- loading --------------------------------------------------------------------------------------------------------


def _load(wanted: str) -> _Outcome:
    kinds = ("auto", "system", "scipy", "off")
    if wanted not in kinds and "/" not in wanted:
        return _Outcome(f"LMXEXP_BLAS={wanted} is none of {', '.join(kinds)} and no path with a slash in it", True)
    if sys.platform != "linux" and wanted not in ("auto", "off"):
        return _Outcome(f"LMXEXP_BLAS={wanted} has a meaning on Linux only: unset it", True)
    if wanted == "off":
        return _Outcome("LMXEXP_BLAS=off; unset it")
    if sys.platform != "linux" or (wanted == "auto" and _mlx_has_cuda()):
        return _Outcome()
    if (present := _global_sgemm()) is not None:  # by LD_PRELOAD, perhaps
        if wanted == "auto":
            return _Outcome()
        return _Outcome(f"LMXEXP_BLAS={wanted} comes too late: {_object_of(present)} is there; unset one of them", True)
    if "mlx.core" in sys.modules:
        return _Outcome("mlx.core was imported before lmxexp; import lmxexp first")

    failures = []
    for name in _candidates(wanted):
        try:
            _publish(name)
            return _Outcome()
        except OSError as error:
            # That the system does not have it is worth no word; that it cannot be loaded is.
            if "/" in name or not str(error).startswith(f"{name}: cannot open"):
                failures.append(str(error))
    why = "; ".join(failures) or "no OpenBLAS was found"
    if wanted == "auto":
        return _Outcome(f"{why}; {_MEND}")
    mend = {"system": "install OpenBLAS (Debian: libopenblas0)", "scipy": _MEND}.get(wanted, "name a BLAS library")
    return _Outcome(f"LMXEXP_BLAS={wanted}: {why}; {mend}, or unset LMXEXP_BLAS", True)


def _candidates(wanted: str) -> list[str]:
    system = list(_SYSTEM_NAMES)
    # The package is found, not imported: importing it would publish all its names.
    spec = importlib.util.find_spec("scipy_openblas32") if wanted in ("auto", "scipy") else None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    scipy = [str(path) for folder in folders for path in Path(folder).glob("lib/libscipy_openblas*.so")]
    return {"auto": system + scipy, "system": system, "scipy": scipy}.get(wanted, [wanted])


def _publish(name: str) -> None:
    """Loads a BLAS and makes its `FUNCTIONS` visible to whatever is loaded next. Raises OSError if it cannot."""
    library = ctypes.CDLL(name, os.RTLD_NOW | os.RTLD_LOCAL)
    prefix = next((p for p in ("", "scipy_") if hasattr(library, p + FUNCTIONS[0])), None)
    if prefix is None or not all(hasattr(library, prefix + f) for f in FUNCTIONS):
        raise OSError(f"{name} has no cblas_sgemm")
    if "USE64BITINT" in (_openblas_config(library, prefix) or ""):
        raise OSError(f"{name} takes 64-bit integers, and MLX passes 32-bit ones")
    addresses = {f: _address(getattr(library, prefix + f)) for f in FUNCTIONS}
    with open(_object_of(getattr(library, prefix + FUNCTIONS[0])), "rb") as file:
        header = file.read(64)

    # Never closed: the dynamic loader knows libraries by path and would take the next file of this number for this one.
    number = os.memfd_create("lmxexp-blas")
    os.write(number, symbol_table(addresses, header))
    path = f"/proc/self/fd/{number}"
    table = ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_LOCAL)
    # Checked before anyone else can see it: a loader with another idea of absolute symbols would send MLX astray.
    if any(_address(getattr(table, f)) != address for f, address in addresses.items()):
        raise OSError(f"{name}: the dynamic loader does not keep absolute symbols")
    ctypes.CDLL(path, os.RTLD_NOW | os.RTLD_GLOBAL | os.RTLD_NOLOAD)


def symbol_table(addresses: dict[str, int], header: bytes) -> bytes:
    """The image of a shared object without code, whose functions are at given absolute addresses of this process.

    Args:
        addresses: name to address.
        header: the first 64 bytes of any shared object of this machine: the kind of processor is copied from it.

    Raises:
        OSError: the machine is not a 64-bit little-endian one.

    Source: System V Application Binary Interface, chapters 4 and 5. glibc keeps absolute symbols unrelocated, as that
    standard wants, from version 2.28 on; MLX's wheels need 2.35.
    """
    if header[:6] != b"\x7fELF\x02\x01":
        raise OSError("it is no 64-bit little-endian ELF file")
    machine, flags = struct.unpack_from("<H", header, 18)[0], struct.unpack_from("<I", header, 48)[0]
    func_global, absolute = 0x12, 0xFFF1
    names, symbols = b"\0", struct.pack("<IBBHQQ", 0, 0, 0, 0, 0, 0)
    for name, address in addresses.items():
        symbols += struct.pack("<IBBHQQ", len(names), func_global, 0, absolute, address, 0)
        names += name.encode() + b"\0"
    n = len(addresses) + 1
    # A hash table of one bucket: a chain through symbols 1, 2, … that ends at 0.
    hashes = struct.pack(f"<{3 + n}I", 1, n, 1, 0, *(i % n for i in range(2, n + 1)))

    at, body = 64 + 3 * 56, b""  # after the file header and three program headers
    offsets = []
    for part in (symbols, hashes, names):
        offsets.append(at + len(body))
        body += part + b"\0" * (-len(part) % 8)
    dynamic_at = at + len(body)
    hash_, strtab, symtab, strsz, syment, end = 4, 5, 6, 10, 11, 0
    dynamic = struct.pack(
        "<12Q", symtab, offsets[0], hash_, offsets[1], strtab, offsets[2], strsz, len(names), syment, 24, end, 0
    )
    size = dynamic_at + len(dynamic)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    shared_object = 3
    image = ident + struct.pack("<HHIQQQIHHHHHH", shared_object, machine, 1, 0, 64, 0, flags, 64, 56, 3, 0, 0, 0)
    load, dynamic_segment, gnu_stack, read_write = 1, 2, 0x6474E551, 6
    # 64 KiB is the largest page that Linux has on these machines; the loader wants no less.
    image += struct.pack("<IIQQQQQQ", load, read_write, 0, 0, 0, size, size, 0x10000)
    image += struct.pack("<IIQ4QQ", dynamic_segment, read_write, *[dynamic_at] * 3, *[len(dynamic)] * 2, 8)
    # Without this entry the loader would make the stack executable.
    image += struct.pack("<IIQQQQQQ", gnu_stack, read_write, 0, 0, 0, 0, 0, 16)
    return image + body + dynamic


# --- looking things up ----------------------------------------------------------------------------------------------


class _DlInfo(ctypes.Structure):
    """What dladdr(3) fills in."""

    _fields_ = (
        ("fname", ctypes.c_char_p),
        ("fbase", ctypes.c_void_p),
        ("sname", ctypes.c_char_p),
        ("saddr", ctypes.c_void_p),
    )


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _object_of(function: Any) -> str:
    """The path of the shared object whose memory holds the function."""
    info = _DlInfo()
    if not ctypes.CDLL(None).dladdr(ctypes.c_void_p(_address(function)), ctypes.byref(info)):
        raise OSError("dladdr found no shared object")
    return os.path.realpath(os.fsdecode(info.fname))


def _global_sgemm() -> Any:
    return getattr(ctypes.CDLL(None), FUNCTIONS[0], None)


def _openblas_config(library: ctypes.CDLL, prefix: str) -> str | None:
    function = getattr(library, f"{prefix}openblas_get_config", None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode(errors="replace").strip()


def _mlx_has_cuda() -> bool:
    # The backend's package installs its library into MLX's own folder: its metadata tells them apart.
    spec = importlib.util.find_spec("mlx")
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return any(True for folder in folders for _ in Path(folder).parent.glob("mlx_cuda_*.dist-info"))
