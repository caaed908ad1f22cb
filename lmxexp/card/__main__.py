"""``python -m lmxexp.card SWEEP``: what each mixer of ``experiment=card`` can do, and what it costs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lmxexp.cli import command


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.card",
        description="One table and one picture per mixer, from the runs of `python -m lmxexp -m experiment=card …`. "
        "Reads directories alone.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="sweeps, or folders above them")
    add("--by", action="append", metavar="NAME", help="choices or settings that make a mixer; default: attention")
    add("--out", type=Path, metavar="DIR", help="where files go; default: the sweep's directory, or ./card for several")
    args = parser.parse_args(argv)

    def work() -> None:
        by = [name.strip() for text in args.by or ["attention"] for name in text.split(",") if name.strip()]
        written = write(args.paths, by, args.out, show=True)
        print(f"\nwritten to {written[0].parent}: {', '.join(path.name for path in written)}")

    return command.run(work, command.report)


def write(
    paths: Sequence[Path | str], by: Sequence[str] = ("attention",), out: Path | None = None, *, show: bool = False
) -> list[Path]:
    """Write ``card.md``, ``card.csv``, ``card.json`` and the pictures.

    Args:
        paths: sweeps, or folders above them.
        by: see `lmxexp.card.read.read`.
        out: where to; None: the directory that was given, or ``./card`` for several.
        show: print the table and what is missing.

    Raises:
        ConfigError: as `lmxexp.card.read.read`.
    """
    from lmxexp.card import plot, table
    from lmxexp.card.read import read

    card = read(paths, by)
    if show:
        print(table.aligned(table.rows(card)))
        print("".join(f"\n{line}" for line in (table.caveat(card), *card.notes) if line))
    folder = out or (Path(paths[0]) if len(paths) == 1 else Path("card"))
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "card.md": table.markdown(card, plot.names(card)),
        "card.csv": table.as_csv(card),
        "card.json": table.as_json(card),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*(folder / name for name in texts), *plot.write(card, folder)]


if __name__ == "__main__":
    sys.exit(main())
