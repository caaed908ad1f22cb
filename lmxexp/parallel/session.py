"""A command line of several processes: rank 0 reads it, and the others do what it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmxexp.interfaces import ConfigError
from lmxexp.parallel.world import World, world
from lmxexp.run_files import new_run_dir

Task = tuple[Any, str | Path | None, int | None]
"""The arguments of `lmxexp.run.run`."""


_led: list[bool] = []
"""Not empty once a run told the other ranks what to do."""


class DismissedError(Exception):
    """Rank 0 ends without a run: it was asked for help, say, or its settings cannot work."""


@contextmanager
def together() -> Iterator[World]:
    """The processes that were launched with this one, for a run; an error in one ends the others."""
    found = world()
    try:
        yield found
    except BaseException as error:
        if found.watch is not None:
            found.watch.fail(error, said=isinstance(error, ConfigError | DismissedError))
        raise


def told(of: World, task: Task) -> Task:
    """What rank 0 is to do, on all ranks."""
    if of.size == 1:
        return task
    _led.append(True)

    def resolved() -> Task:
        cfg, run_dir, until = task
        assert isinstance(cfg, DictConfig)
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True)), run_dir or new_run_dir(cfg), until

    _, run_dir, until = everyones = of.from_main(resolved)
    # Rank 0 writes its own configuration, with interpolations, into the run's record.
    return (task[0], run_dir, until) if of.is_main else everyones


def follow() -> int:
    """All that a process of another rank than 0 does; its exit code."""
    from lmxexp.cli import command, errors

    command.find_modules_here()
    try:
        from lmxexp.run import run

        run(None)
    except DismissedError:
        return 0
    except BaseException as error:
        if not world.cache_info().currsize:  # there was nobody yet to tell it to
            errors.report(errors.describe(error))
        return 1
    return 0  # however the run ended: rank 0's exit code says so


@contextmanager
def lead() -> Iterator[None]:
    """On rank 0, around all that it does: the others are met before anything else, as they wait for some seconds only,
    and are let go at the end where no run told them what to do."""
    world()
    try:
        yield
    finally:
        if not _led:
            with suppress(DismissedError), together() as found:
                found.from_main(_leave)


def _leave() -> None:
    raise DismissedError
