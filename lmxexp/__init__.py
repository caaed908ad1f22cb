"""Find out whether one language-model design beats another: experiments in MLX, configured by Hydra.

From a notebook::

    import lmxexp

    cfg = lmxexp.compose(["attention=mha", "train.steps=100"])
    result = lmxexp.run(cfg)
    trained = lmxexp.load(result.run_dir)

Names are imported when they are first used, so ``import lmxexp`` costs next to nothing.
"""

import os
import sys
import time
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

IMPORTED_AT = time.perf_counter()

from lmxexp import blas  # noqa: E402 - the clock starts before MLX and all else is loaded

if TYPE_CHECKING:
    from lmxexp.compose import compose
    from lmxexp.loaded import load
    from lmxexp.model.build import build_model
    from lmxexp.run import run

    __version__: str

__all__ = ["__version__", "build_model", "compose", "load", "run"]

# MLX lets fp32 products run in TF32 (10 bits of mantissa) on GPUs that can. Here fp32 means fp32, and bf16 is asked for
# by name: two designs must not differ by what their products were rounded to. MLX reads it at its first product.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

# What MLX's CUDA backend puts into one graph of kernels, whose arrays are all kept until the last of them is through. A
# step of 124M parameters takes 19 GB with it instead of 28, in the same time; small arrays never come near it.
if sys.platform == "linux":
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "200")
    # MLX counts the graphs and attention plans that a process has ever made there, and from 800 and 128 on raises
    # "Cache thrashing is happening" at each that is new. A sweep of many designs in one process gets there by itself.
    os.environ.setdefault("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")

# A fast BLAS has to be in the process before mlx.core is, and every import of ours passes here first.
blas.load()

_HOME = {"compose": "lmxexp.compose", "build_model": "lmxexp.model.build", "load": "lmxexp.loaded", "run": "lmxexp.run"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("lmxexp")
        except PackageNotFoundError:  # used from a directory, not installed
            return "unknown"
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps ``lmxexp.run`` and ``lmxexp.compose`` the functions.

    Importing a file of a package puts the module into the package under the file's name, which here would hide the
    function of that name. ``from lmxexp.run import …`` works all the same.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
