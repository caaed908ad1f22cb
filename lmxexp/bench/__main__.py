"""``python -m lmxexp.bench``: how fast the training step is, beside other trainers on the same machine."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

DESCRIPTION = """Times the training step as `python -m lmxexp` takes it: time, tokens/s, model FLOPs utilisation against
this machine's measured matrix products, peak memory, and the first step; beside the same step of other trainers."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m lmxexp.bench", description=DESCRIPTION, allow_abbrev=False)
    p.add_argument("overrides", nargs="*", help="as of `python -m lmxexp`: model=llama train.max_grad_norm=null …")
    p.add_argument("--size", nargs="+", help="sizes of models; by default tiny on a CPU, 124m on a GPU")
    p.add_argument("--attention", nargs="+", help="kinds of attention; all options with several values make a grid")
    p.add_argument("--optim", nargs="+", help="optimizers")
    p.add_argument("--precision", nargs="+", help="auto, fp32, bf16, mixed")
    p.add_argument("--batch-size", type=int, metavar="B", help="sequences of a step: 16 on a CPU, 32 on a GPU")
    p.add_argument("--seq-len", type=int, metavar="L", help="tokens of a sequence: 128 on a CPU, 1024 on a GPU")
    p.add_argument("--vocab", type=int, metavar="V", help="vocabulary: 256 up to size 50m, 50,257 beyond")
    p.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each contestant")
    p.add_argument("--steps", type=int, metavar="N", help="of a turn: 4 on a CPU, 20 on a GPU")
    p.add_argument("--peers", nargs="*", metavar="PEER", help="torch, mlx_lm, lmxlab; by default all, none for none")
    p.add_argument("--out", type=Path, default=Path("outputs/bench"), metavar="DIR", help="for the report")
    p.add_argument("--config-dir", metavar="DIR", help="your own kinds, as of `python -m lmxexp`")
    return p


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code, 1 if no step of lmxexp's could be measured."""
    from lmxexp.cli import command

    args = parser().parse_intermixed_args(argv)
    _take_overrides_out(args)

    return command.run_composed(args.overrides, lambda: _bench(args))


def _bench(args: argparse.Namespace) -> int:
    from lmxexp import blas, device
    from lmxexp.bench import report, suite
    from lmxexp.bench.cases import ON_CPU, ON_GPU, cases_of
    from lmxexp.record import environment_record, version_of

    n_steps = args.steps if args.steps is not None else (ON_GPU if device.is_gpu() else ON_CPU)["steps"]
    peer_names = _peers(args.peers)
    _check_counts({"rounds": args.rounds, "steps": n_steps, "vocab": args.vocab})
    cases = cases_of(
        args.overrides,
        config_dir=args.config_dir,
        vocab_size=args.vocab,
        batch_size=args.batch_size,
        seq_len=args.seq_len,
        size=args.size,
        attention=args.attention,
        optim=args.optim,
        precision=args.precision,
    )
    if (warning := blas.warning()) is not None:
        print(warning, file=sys.stderr)
    around = environment_record(sys.argv)
    found = suite.run(
        cases,
        peer_names,
        n_rounds=args.rounds,
        n_steps=n_steps,
        date=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        command=around["command"],
        machine={**around["device"], "os": platform.system()},  # its release may name a company's build
        packages={name: version_of(name.replace("_", "-")) for name in ("lmxexp", "mlx", "numpy", *peer_names)},
        blas={key: around["blas"][key] for key in ("kind", "version", "threads")},
        git=around["git"],
    )
    report.show(found)
    text, data = report.save(found, args.out)
    print(f"{text} and {data.name} beside it")
    return 0 if any(row.contestant == "lmxexp" and row.step_s for row in found.rows) else 1


def _take_overrides_out(args: argparse.Namespace) -> None:
    """An option of several values takes what follows it: ``--size tiny 10m train.n_micro=2``."""
    for name in ("size", "attention", "optim", "precision", "peers"):
        values = getattr(args, name) or []
        args.overrides += [value for value in values if "=" in value]
        if any("=" in value for value in values):
            setattr(args, name, [value for value in values if "=" not in value] or None)


def _peers(names: list[str] | None) -> list[str]:
    from lmxexp.bench.peers import PACKAGES
    from lmxexp.cli.errors import did_you_mean, refuse

    if names is None:
        return list(PACKAGES)
    wanted = [name.replace("-", "_") for name in names if name != "none"]
    problems = [
        f"--peers={name} must be one of {', '.join(PACKAGES)}, none{did_you_mean(name, PACKAGES)}"
        for name in wanted
        if name not in PACKAGES
    ]
    if problems:
        refuse(problems)
    return list(dict.fromkeys(wanted))


def _check_counts(counts: dict[str, int | None]) -> None:
    from lmxexp.cli.errors import refuse

    problems = [f"--{name}={n} must be at least 1" for name, n in counts.items() if n is not None and n < 1]
    if problems:
        refuse(problems)


if __name__ == "__main__":
    sys.exit(main())
