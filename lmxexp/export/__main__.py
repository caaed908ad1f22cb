"""``python -m lmxexp.export RUN_DIR OUT_DIR``: the model of a finished run as a Hugging Face directory."""

import argparse
import sys

from lmxexp.interfaces import ConfigError


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.export",
        description="Write the model of a finished run as a Hugging Face directory, for transformers and mlx-lm.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", help="directory of the run")
    parser.add_argument("out_dir", help="directory to write: new, empty, or an earlier export")
    parser.add_argument("--checkpoint", choices=["newest", "best"], default="newest")
    parser.add_argument("--no-tokenizer", action="store_true", help="write the model alone")
    args = parser.parse_args(argv)
    try:
        _export(args)
    except ConfigError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


def _export(args: argparse.Namespace) -> None:
    from lmxexp.export import export
    from lmxexp.loaded import load

    run = load(args.run_dir, args.checkpoint)
    name = export(run.model, run.cfg, args.out_dir, None if args.no_tokenizer else run.tokenizer)
    print(f"{args.out_dir}: {name}, {run.model.n_params():,} parameters, after {run.step} steps")


if __name__ == "__main__":
    main()
