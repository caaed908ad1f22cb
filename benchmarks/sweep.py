"""What a sweep costs beside its training: points of a few steps in one process, as a user types it.

    python benchmarks/sweep.py                  # 20 points of 10 steps; --help for the rest

The overhead of a point is the time of the whole command less the seconds that its points trained, evaluated and wrote
checkpoints (`seconds` of their summaries), divided by their number. The command's start, which every command has, and
the comparison at the end are shown by themselves: from commands of one and of all points.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--points", type=int, default=20)
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--more", nargs="*", default=[], help="further overrides")


def sweep(directory: Path, points: int, steps: int, more: list[str]) -> tuple[float, float]:
    """Seconds of a whole command, and those of them that its points trained."""
    seeds = ",".join(str(i + 1) for i in range(points))
    command = [sys.executable, "-m", "lmxexp", "-m", f"seed={seeds}", f"train.steps={steps}", "logger=[console,jsonl]"]
    command += [f"hydra.sweep.dir={directory}", *more]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={"WANDB_MODE": "disabled", **os.environ})
    seconds = time.perf_counter() - start
    with (directory / "points.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * points
    trained = [json.loads(path.read_text())["seconds"] for path in directory.glob("*/summary.json")]
    return seconds, sum(trained)


def main() -> None:
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep(Path(folder) / "warm", 1, args.steps, args.more)  # tokens into the cache, kernels compiled
        one, trained_one = sweep(Path(folder) / "one", 1, args.steps, args.more)
        many, trained = sweep(Path(folder) / "many", args.points, args.steps, args.more)
    start = one - trained_one
    print(f"{args.points} points of {args.steps} steps: {many:.1f} s, of which training {trained:.1f} s")
    print(f"a point beyond its training: {(many - trained) / args.points:.3f} s, start and report included")
    print(f"a point more:                {(many - trained - start) / (args.points - 1):.3f} s")
    print(f"start and report of a sweep of one point: {start:.1f} s")


if __name__ == "__main__":
    main()
