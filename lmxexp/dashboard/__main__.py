"""``python -m lmxexp.dashboard SWEEP``: a saved W&B workspace for a sweep."""

from __future__ import annotations

import argparse
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from lmxexp.cli import command

TIMEOUT_SECONDS = 60.0
"""For all that W&B is asked."""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    from lmxexp.cli import errors

    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.dashboard",
        description="Save a W&B workspace for a sweep: loss curves by what differs, loss against speed and memory, "
        "parallel coordinates. Without a login its JSON is written into the sweep's directory.",
        allow_abbrev=False,
    )
    parser.add_argument("sweep", metavar="SWEEP", type=Path, help="the directory of a sweep: outputs/sweeps/NAME")
    parser.add_argument("--project", metavar="NAME", help="W&B project; by default that of the sweep's runs")
    parser.add_argument("--entity", metavar="NAME", help="user or team; by default that of the sweep's runs")
    args = parser.parse_args(argv)

    def report(error: Exception) -> None:
        expected = errors.is_config_error(error)
        errors.report(str(error) if expected else type(error).__name__, None if expected else error)

    return command.run(lambda: _run(args, sys.argv[1:] if argv is None else argv), report)


def _run(args: argparse.Namespace, argv: list[str]) -> int:
    from lmxexp.cli.errors import refuse, report
    from lmxexp.dashboard.contents import read

    contents = read(args.sweep, args.project, args.entity)
    if find_spec("wandb_workspaces") is None:
        refuse("a W&B workspace needs the package wandb-workspaces: pip install 'lmxexp[dashboard]'")
    from lmxexp.dashboard.send import save

    saved = save(contents, args.sweep, TIMEOUT_SECONDS)
    if saved.url is not None:
        print(saved.url, flush=True)
        return 0
    again = f"python -m lmxexp.dashboard {shlex.join(argv)}"
    if saved.failed:
        report(f"W&B did not take the workspace ({saved.problem}). It is in {saved.file}; send it by `{again}`")
        return 1
    print(f"{saved.file}\nnot sent, {saved.problem}, then `{again}`", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
