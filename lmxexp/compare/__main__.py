"""``python -m lmxexp.compare PATH…``: which design is better, and how sure that is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from lmxexp.cli import command
from lmxexp.compare.read import BUDGETS

if TYPE_CHECKING:
    from lmxexp.compare.comparison import Comparison

_FORMATS = ("table", "markdown", "csv", "latex")


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    args = _parser().parse_intermixed_args(argv)
    return command.run(lambda: _compare(args), command.report)


class _Parser(argparse.ArgumentParser):
    """Says what a misspelt option or word may have been meant to be, and leaves the usage to ``--help``."""

    def error(self, message: str) -> NoReturn:
        from lmxexp.cli.errors import did_you_mean

        *_, given = message.partition("unrecognized arguments: ")
        known = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            start = f"argument {'/'.join(action.option_strings)}: invalid choice: "
            if action.choices and message.startswith(start):
                given, known = message.removeprefix(start), list(action.choices)
        hint = did_you_mean(given.split()[0].partition("=")[0].strip("'"), known) if given else ""
        self.exit(2, f"lmxexp: error: {message}{hint or '; --help lists the options'}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lmxexp.compare",
        description="Compare runs over their seeds: means, paired differences, and verdicts. Reads directories alone.",
        epilog="for example: python -m lmxexp.compare outputs/sweeps/NAME --baseline mha --effect 0.01",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PATH", help="runs, sweeps, or folders above them")
    add("--by", action="append", metavar="NAME", help="choices or settings that make arms; default: all but seeds")
    add("--metric", metavar="NAME", help="what is compared; default: eval/loss, or eval/bpb between tokenizers")
    add("--baseline", metavar="LABEL", help="the arm that the others are compared with; default: the first")
    add("--budget", choices=BUDGETS, help="whose mismatch is judged; default: what the sweep matched, or tokens")
    add("--sensitivity", type=float, metavar="X", help="gain of the metric per e-fold of the budget; default: measured")
    add("--effect", type=float, metavar="X", help="also say how many seeds would show a difference of X")
    add("--higher-is-better", action="store_true", help="of a metric whose direction its name does not tell")
    add("--tune", metavar="KEY", help="take each arm at its best value of KEY; default: what the sweep tuned")
    add("--format", choices=_FORMATS, default="table", help="what is printed; default: table")
    add("--out", type=Path, metavar="DIR", help="where files go; default: the sweep's directory, or ./comparison")
    add("--no-plots", action="store_true", help="write no PNG and HTML files")
    add("--diff", nargs=2, metavar=("A", "B"), help="instead: how the configurations of two runs differ")
    add("--fit", choices=("scaling",), help="instead: a scaling law over sizes and budgets")
    return parser


def _compare(args: argparse.Namespace) -> None:
    by = [name.strip() for text in args.by or [] for name in text.split(",")] or None
    if by and not all(by):
        from lmxexp.cli.errors import refuse

        refuse(f"--by {','.join(args.by)!r} names nothing: give a choice or a setting, such as --by attention")
    if args.diff:
        _show_difference(args)
    elif args.fit:
        _show_law(args, by)
    else:
        _show_comparison(args, by)


def _show_comparison(args: argparse.Namespace, by: list[str] | None) -> None:
    from lmxexp.compare.comparison import compare

    comparison = compare(
        args.paths,
        by=by,
        metric=args.metric,
        baseline=args.baseline,
        budget=args.budget,
        sensitivity=args.sensitivity,
        effect=args.effect,
        higher=True if args.higher_is_better else None,
        tune=args.tune,
    )
    if args.format == "table":
        from lmxexp.compare import table

        table.show(comparison)
    else:
        from lmxexp.compare import files

        text = {"markdown": files.markdown, "csv": files.as_csv, "latex": files.latex}[args.format]
        sys.stdout.write(text(comparison))
        sys.stdout.flush()
        if args.out is None:  # for a pipe
            return
    report = sys.stdout if args.format == "table" else sys.stderr
    _report(write(comparison, args.out or _place(args.paths), plots=not args.no_plots), report)
    from lmxexp.compare import to_wandb

    if address := to_wandb.send_beside_runs(comparison):
        print(f"W&B: {address}", file=report)


def write(comparison: Comparison, out: Path, *, plots: bool = True) -> list[Path]:
    """Write all files of a comparison into a directory: tables, and with ``plots`` the pictures and the page."""
    from lmxexp.compare import files

    with _writable(out):
        written = files.write(comparison, out)
        if plots:
            from lmxexp.compare import html
            from lmxexp.compare import plots as pictures

            written += [*pictures.write(comparison, out), html.write(comparison, out)]
    return written


@contextmanager
def _writable(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        from lmxexp.cli.errors import refuse

        refuse(f"{out} cannot be written to ({error.strerror or error}): give another directory, --out DIR")


def _place(paths: list[str]) -> Path:
    """The directory of the sweep, if one sweep alone was given."""
    if len(paths) == 1 and (Path(paths[0]) / "sweep.json").is_file():
        return Path(paths[0])
    return Path("comparison")


def _report(written: list[Path], to: TextIO) -> None:
    print(f"\nwritten to {written[0].parent}: {', '.join(path.name for path in written)}", file=to)


def _show_difference(args: argparse.Namespace) -> None:
    from lmxexp.compare import diff
    from lmxexp.compare.read import find_runs

    _refuse_others(args, "--diff", ("diff",))
    runs = find_runs(args.diff)
    if len(runs) != 2:
        from lmxexp.cli.errors import refuse

        held = "are the same one" if len(runs) == 1 else f"hold {len(runs)}"
        refuse(f"--diff takes two runs, and {' and '.join(args.diff)} {held}: give the directories of two runs")
    print("\n".join(diff.lines(runs[0], runs[1])))


def _show_law(args: argparse.Namespace, by: list[str] | None) -> None:
    from lmxexp.compare import scaling_runs
    from lmxexp.compare.read import find_runs

    _refuse_others(args, "--fit", ("fit", "paths", "by", "metric", "out", "no_plots"))
    fits = scaling_runs.fit_runs(
        find_runs(args.paths), by=by, **({} if args.metric is None else {"metric": args.metric})
    )
    print("\n".join(scaling_runs.lines(fits)))
    if not args.no_plots:
        from lmxexp.compare import scaling_plot

        out = args.out or _place(args.paths)
        with _writable(out):
            _report(scaling_plot.write(fits, out), sys.stdout)


def _refuse_others(args: argparse.Namespace, option: str, read: tuple[str, ...]) -> None:
    """Refuse what the option would not read."""
    ignored = [k for k, v in vars(args).items() if k not in read and v not in (None, False, "table", [])]
    if ignored:
        from lmxexp.cli.errors import refuse

        names = ", ".join("PATH" if k == "paths" else f"--{k.replace('_', '-')}" for k in ignored)
        refuse(f"{option} does not read {names}: leave it out")


if __name__ == "__main__":
    sys.exit(main())
