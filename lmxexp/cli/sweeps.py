"""What the command line says of a sweep: its name, and the names of its points' directories."""

from __future__ import annotations

import os
import re

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lmxexp.cli.errors import refuse


def named(overrides: list[str]) -> list[str]:
    """``sweep=NAME`` as the directory ``outputs/sweeps/NAME``; a command that is given again finds its points there.

    Raises:
        ConfigError: a name that is no name of a directory.
    """
    result = []
    for text in overrides:
        key, equals, name = text.partition("=")
        if key.lstrip("+") != "sweep" or not equals or name.startswith("{"):
            result.append(text)
            continue
        if not re.fullmatch(r"[\w.+@-]+", name) or name in (".", ".."):
            refuse(
                f"{text}: a sweep's name has letters, digits and any of . _ + @ -; for a path say hydra.sweep.dir=DIR"
            )
        result.append(f"hydra.sweep.dir={os.environ.get('LMXEXP_OUTPUTS', 'outputs')}/sweeps/{name}")
    return result


_OF_SWEEPS = re.compile(r"\+*(sweep|match|tune|hydra[./](sweep|sweeper|launcher)|hparams_search)([.=].*|=.*)")


def refuse_alone(overrides: list[str]) -> None:
    """What says something about a sweep would be ignored by a single run.

    Raises:
        ConfigError: there is such an override.
    """
    if found := [text for text in overrides if _OF_SWEEPS.fullmatch(text)]:
        refuse([f"{text} is about a sweep: add --multirun (or -m), or leave it out" for text in found])


def directory_names(overrides: list[str]) -> str:
    """The override that keeps what is equal in all points, and paths, out of the names of their directories.

    Both would make a name too long or, with a slash, a directory somewhere else.
    """
    leave_out = []
    for text in overrides:
        try:
            override = OverridesParser.create().parse_overrides([text])[0]
        except HydraException:  # said better when Hydra meets it
            continue
        if not override.is_sweep_override() or "/" in text.partition("=")[2]:
            leave_out.append(override.key_or_group)
    quoted = ",".join(f"'{key}'" for key in sorted({*leave_out, "resume"}))
    return f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"
