"""``python -m lmxexp.prepare data=… tokenizer=…``: make the tokens that runs with this data will read.

A run makes them itself when it is the first to need them. Made beforehand they can be made on another machine, or while
the GPU is busy, and a sweep's first point starts at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def prepare(cfg: DictConfig) -> dict[str, Any]:
    """Make the tokens of ``cfg.data`` with ``cfg.tokenizer``, or find them in the cache.

    Args:
        cfg: from `lmxexp.compose`.

    Returns:
        What a run's ``run.json`` says under ``data``, and ``seconds``.

    Raises:
        ConfigError: a setting that cannot work, or data that cannot be had.
    """
    from lmxexp.cli.validate import check
    from lmxexp.data.build import build_source

    check(cfg)
    began = time.perf_counter()
    source = build_source(cfg)
    return {**source.record, "seconds": time.perf_counter() - began}


def show(record: Mapping[str, Any], directory: str | None) -> None:
    """Print what was made: a line for each split, and where the tokens are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    splits = [split for split in ("train", "validation") if f"{split}_tokens" in record]
    if not splits:
        print("this data is generated when a run asks for it: there is nothing to prepare")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("", "tokens", "documents", "bytes of text", "bytes/token"):
        table.add_column(column, justify="right" if column else "left")
    for split in splits:
        tokens, n_bytes = record[f"{split}_tokens"], record[f"{split}_bytes"]
        documents = record.get(f"{split}_documents")
        counts = [f"{n:,}" if isinstance(n, int) else "" for n in (tokens, documents, n_bytes)]
        table.add_row(split, *counts, f"{n_bytes / tokens:.2f}")
    console.print(table)
    where = f" in {directory}/tokens" if directory else ""
    print(
        f"vocabulary {record['vocab_size']:,}, fingerprint {record['fingerprint'][:12]}; ready{where} after "
        f"{record['seconds']:.1f} s"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    from lmxexp.cli import command

    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.prepare",
        description="Makes the tokens that `python -m lmxexp` with the same data and tokenizer will read. After a "
        "kill, the same command goes on where it was.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="as of `python -m lmxexp`: data=fineweb_edu tokenizer=bpe …")
    parser.add_argument("--config-dir", metavar="DIR", help="your own kinds, as of `python -m lmxexp`")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        from lmxexp.cli.validate import check
        from lmxexp.compose import compose

        cfg = compose(args.overrides, args.config_dir)
        check(cfg, args.overrides)
        record = prepare(cfg)
        if args.json:
            print(json.dumps(record, indent=2))
        else:
            show(record, cfg.data.get("cache_dir"))

    return command.run_composed(args.overrides, work)


if __name__ == "__main__":
    sys.exit(main())
