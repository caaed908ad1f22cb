"""The directories of a sweep's points: named by what differs between them."""

from __future__ import annotations

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


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
