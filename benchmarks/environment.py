"""What environment variables change in the training step: every combination in processes of its own.

    python benchmarks/environment.py MLX_MAX_OPS_PER_BUFFER=20,50,100 MLX_MAX_MB_PER_BUFFER=200,1000 -- size=124m \
        train.batch_size=32 train.seq_len=1024
    python benchmarks/environment.py LMXEXP_CUDA_KERNELS=1,0 --vocab 256 --steps 60 -- size=tiny

What stands after ``--`` is lmxexp's configuration. Combinations take turns, a process each time, as MLX reads most of
its variables once. ``unset`` among the values leaves a variable out. The step is `lmxexp.bench`'s, on random tokens.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("variables", nargs="+", metavar="NAME=VALUE,VALUE")
parser.add_argument("--vocab", type=int, default=50257)
parser.add_argument("--steps", type=int, default=10, help="in each round")
parser.add_argument("--rounds", type=int, default=5, help="in each process; the fastest and the median are kept")
parser.add_argument("--turns", type=int, default=2, help="processes of each combination")


def of_one(overrides: list[str], vocab: int, steps: int, rounds: int) -> dict[str, float]:
    """Milliseconds a step and GB at the peak, in this process."""
    import lmxexp
    from lmxexp import device
    from lmxexp.bench.own import OwnStep

    step = OwnStep(lmxexp.compose(overrides), vocab)
    step.run(3)
    device.reset_peak_memory()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        step.run(steps)
        times.append(1e3 * (time.perf_counter() - start) / steps)
    return {"ms": statistics.median(times), "fastest": min(times), "gb": device.peak_memory_gb()}


def in_a_process(given: dict[str, str], args: argparse.Namespace, overrides: list[str]) -> dict[str, float] | str:
    """What `of_one` finds; or why it did not."""
    environment = {**os.environ, **{name: value for name, value in given.items() if value != "unset"}}
    for name, value in given.items():
        if value == "unset":
            environment.pop(name, None)
    what = json.dumps([overrides, args.vocab, args.steps, args.rounds])
    run = subprocess.run([sys.executable, __file__, "--one", what], env=environment, capture_output=True, text=True)
    if run.returncode:
        return (run.stderr.strip().splitlines() or [f"ended with {run.returncode}"])[-1][:200]
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    own, overrides = sys.argv[1:], []
    if "--" in own:
        own, overrides = own[: own.index("--")], own[own.index("--") + 1 :]
    args = parser.parse_args(own)
    if wrong := [variable for variable in args.variables if "=" not in variable]:
        parser.error(f"{wrong[0]}: say NAME=VALUE, or NAME=VALUE,VALUE")
    names = [variable.partition("=")[0] for variable in args.variables]
    values = [variable.partition("=")[2].split(",") for variable in args.variables]
    combinations = [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*values)]
    found: list[list[dict[str, float]]] = [[] for _ in combinations]
    for turn in range(args.turns):
        for i, given in enumerate(combinations):
            result = in_a_process(given, args, overrides)
            said = result if isinstance(result, str) else f"{result['ms']:.2f} ms, {result['gb']:.2f} GB"
            print(f"turn {turn + 1}, {' '.join(f'{n}={v}' for n, v in given.items())}: {said}", flush=True)
            if not isinstance(result, str):
                found[i].append(result)
    print(f"\n{' '.join(overrides)}: medians of the processes, the fastest round in parentheses")
    print(f"| {' | '.join(names)} | ms a step | peak GB |\n|{'---|' * len(names)}---:|---:|")
    for given, results in zip(combinations, found, strict=True):
        if results:
            ms, gb = (statistics.median(r[key] for r in results) for key in ("ms", "gb"))
            fastest = min(r["fastest"] for r in results)
            print(f"| {' | '.join(given.values())} | {ms:.2f} ({fastest:.2f}) | {gb:.2f} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(of_one(*json.loads(sys.argv[2]))))
    else:
        main()
