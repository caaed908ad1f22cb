"""Whether a command line is one run or a sweep, where its flags alone say it.

Hydra composes the whole configuration to see whether a file sets ``hydra.mode``, and then composes it again: a fifth of
a second, a tenth of what passes before the first step of a small run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra._internal.hydra import Hydra

from lmxexp.cli.arguments import CommandLine

_FLAGS = ("--config-dir", "--config-path", "--config-name", "--experimental-rerun")
"""That bring files of the user's."""
_GROUPS = ("hparams_search",)
"""Of ours, whose files set it."""
_KEYS = ("hydra", "hydra.mode", "hydra.searchpath")


@contextmanager
def told(line: CommandLine) -> Iterator[None]:
    """Around Hydra's main function: spares it the first composition if that could find nothing."""
    if not only_by_flags(line):
        yield
        return
    find_out = Hydra.get_mode
    Hydra.get_mode = lambda *_, **__: None  # as it says of a configuration without a mode
    try:
        yield
    finally:
        Hydra.get_mode = find_out


def only_by_flags(line: CommandLine) -> bool:
    """Whether nothing that the line names can set ``hydra.mode``."""
    if any(flag in line.values for flag in _FLAGS):
        return False
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in line.overrides]
    return not any(key in _GROUPS or key in _KEYS or key.startswith("hydra/") for key in keys)
