"""The processes that train one model together, and what they tell each other besides gradients."""

from __future__ import annotations

import atexit
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten

from lmxexp.interfaces import ConfigError
from lmxexp.ops.trees import by_path, number
from lmxexp.parallel.launch import launched
from lmxexp.parallel.watch import Watch

T = TypeVar("T")


class World:
    """One process by itself: there is nobody to tell, and nothing is computed for it."""

    rank, size, backend = 0, 1, "none"
    watch: Watch | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs, prints and writes what is of the whole run."""
        return self.rank == 0

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on rank 0, or the error that it raises there, on all ranks."""
        return make()

    def main_first(self, make: Callable[[], T]) -> T:
        """What ``make`` returns on each rank; rank 0 is through before the others begin, so that what it left on disk
        is not made twice. An error of rank 0 is raised on all."""
        return make()

    def arrays_of_main(self, arrays: dict[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
        """Rank 0's arrays, bit for bit, one after the other and unevaluated; those of other ranks are not looked at.

        Args:
            arrays: emptied, so that each may be let go before the next.
        """
        while arrays:
            path = next(iter(arrays))
            yield path, arrays.pop(path)

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all ranks, in double precision, the same on each."""
        return list(numbers)

    def refuse_unless_same(self, value: Any, message: str) -> None:
        """Raise a `ConfigError` on all ranks unless they have the same value."""

    def own_dir(self, run_dir: Path) -> Path:
        """Where this rank writes what a run writes; other ranks than 0 into a directory that goes when they end."""
        return run_dir


class Ranks(World):
    """Several processes, started by `mlx.launch`.

    Args:
        group: of all of them.
        backend: that connects them.
        main_host: an address of rank 0; empty: rank 0 knows its name.
    """

    def __init__(self, group: mx.distributed.Group, backend: str, main_host: str = ""):
        self.group, self.backend = group, backend
        self.rank, self.size = group.rank(), group.size()
        self.watch = Watch(self.rank, self.size, exit=self._leave)
        self._directories: list[str] = []

        def listen() -> tuple[str, int, bytes]:
            host = main_host or socket.gethostname()
            assert self.watch is not None
            return host, *self.watch.listen(host)

        self.watch.connect(*self.from_main(listen))
        atexit.register(self._clear)
        atexit.register(self.watch.finish)
        self.watch.have_the_last_word()
        self.watch.follow_parent(lambda: os.kill(os.getpid(), signal.SIGTERM))
        if not self.is_main:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (until the process ends)

    def from_main(self, make: Callable[[], T]) -> T:
        error: Exception | None = None
        told = b""
        if self.is_main:
            try:
                told = pickle.dumps((make(), None))
            except Exception as e:
                error = e
                told = _pickled_error(e)
        value, theirs = pickle.loads(self._bytes_of_main(told))
        if error is not None:
            raise error  # with its traceback
        if theirs is not None:
            raise theirs
        return value

    def main_first(self, make: Callable[[], T]) -> T:
        made: list[T] = []
        self.from_main(lambda: made.append(make()))
        return made[0] if self.is_main else make()

    def arrays_of_main(self, arrays: dict[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
        kinds = self.from_main(lambda: [(path, a.shape, _name(a.dtype)) for path, a in arrays.items()])
        for path, shape, dtype in kinds:
            if self.is_main:
                told = arrays.pop(path).reshape(-1).view(mx.uint8)
            else:
                told = mx.zeros((int(np.prod(shape)) * getattr(mx, dtype).size,), mx.uint8)
            # Bytes: of floating-point numbers a sum with zeros changes -0 and NaN.
            told = mx.distributed.all_sum(told, group=self.group)
            yield path, told.view(getattr(mx, dtype)).reshape(shape)

    def total(self, numbers: Sequence[float]) -> list[float]:
        mine = np.frombuffer(np.array(numbers, np.float64).tobytes(), np.uint8)
        all_of_them = mx.distributed.all_gather(mx.array(mine)[None], group=self.group)
        table = np.frombuffer(np.array(all_of_them).tobytes(), np.float64).reshape(self.size, len(numbers))
        return [float(x) for x in table.sum(axis=0)]

    def refuse_unless_same(self, value: Any, message: str) -> None:
        theirs = self.from_main(lambda: value)
        [different] = self.total([float(value != theirs)])
        if different:
            raise ConfigError(message)

    def own_dir(self, run_dir: Path) -> Path:
        if self.is_main:
            return run_dir
        self._directories.append(tempfile.mkdtemp(prefix="lmxexp-rank-"))
        return Path(self._directories[-1])

    def _leave(self, code: int) -> None:
        """End at once: the main thread may be in a collective operation for ever."""
        self._clear()
        os._exit(code)

    def _clear(self) -> None:
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)

    def _bytes_of_main(self, told: bytes) -> bytes:
        length = round(number(self._sum(mx.array([len(told)], mx.int32))))
        buffer = mx.array(np.frombuffer(told, np.uint8)) if self.is_main else mx.zeros((length,), mx.uint8)
        return np.array(self._sum(buffer)).tobytes()

    def _sum(self, a: mx.array) -> mx.array:
        total = mx.distributed.all_sum(a, group=self.group)
        mx.eval(total)
        return total


ALONE = World()


@cache
def world() -> World:
    """This process's: `Ranks` where it was launched with others, which are waited for; else `ALONE`.

    Raises:
        ConfigError: the backend does not connect them.
    """
    told = launched()
    if told is None:
        return ALONE
    try:
        # By its name: MLX would otherwise take any backend that initialises, and be alone where none does.
        group = mx.distributed.init(strict=True, backend=told.backend)
    except Exception as error:
        raise ConfigError(
            f"mlx.launch --backend {told.backend}: the {told.size} processes are not connected "
            f"({' '.join(str(error).split())})"
        ) from error
    return Ranks(group, told.backend, told.main_host)


def is_launched_as_other() -> bool:
    """Whether another process is rank 0, which has the command line."""
    told = launched()
    return told is not None and told.rank != 0


def update_from_main(of: World, model: Any) -> None:
    """Give a model the parameters that it has on rank 0: what starts differently would never come together."""
    if of.size == 1:
        return
    for path, a in of.arrays_of_main(by_path(model.parameters())):
        model.update(tree_unflatten([(path, a)]))
    mx.eval(model.parameters())


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]


def _pickled_error(error: Exception) -> bytes:
    try:
        told = pickle.dumps((None, error))
        pickle.loads(told)
        return told
    except Exception:  # one whose constructor takes something else
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
