"""How long `python -m lmxexp.compare` takes over many runs that were never trained.

    python benchmarks/compare_runs.py            # 500 runs of 2,000 logged steps; --help for the rest

The runs are directories as `lmxexp.run` and a sweep leave them: four kinds of attention at several learning rates, five
seeds each, with the configuration that a run has and a line of ten metrics a step, evaluated at every hundredth.
Each command is a process of its own, imports included, and is timed several times: the first finds files that were just
written in the system's cache, as those of a sweep that has just ended are. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--runs", type=int, default=500)
parser.add_argument("--steps", type=int, default=2000, help="logged steps of each")
parser.add_argument("--repeats", type=int, default=3, help="timings of each command; the median is printed")

KINDS, SEEDS, TOKENS_A_STEP = ("mha", "gqa", "mqa", "sliding"), 5, 2048
COMMANDS = {
    "table and files, no pictures": ["--no-plots"],
    "all files, 4 PNG and HTML": [],
    "CSV to a pipe": ["--format", "csv"],
    "a metric that no summary has": ["--no-plots", "--metric", "train/grad_norm"],
    "each arm at its best learning rate": ["--tune", "optim.learning_rate"],
}


def config_of(kind: str) -> str:
    """The resolved configuration, as YAML, with words for what differs between the runs of a kind."""
    import lmxexp  # noqa: F401, isort: skip  (the BLAS, before MLX)
    from omegaconf import OmegaConf

    from lmxexp.compose import compose

    overrides = [f"attention={kind}", "seed=1234567", "optim.learning_rate=0.0007654", "logger=[jsonl]"]
    return OmegaConf.to_yaml(compose(overrides), resolve=True)


def lines_of(rng: np.random.Generator, loss: float, steps: int) -> list[dict]:
    """What `metrics.jsonl` holds: a power law of the step with noise, and evaluations without."""
    step = np.arange(1, steps + 1)
    curve = loss + 2 * ((step / steps) ** -0.3 - 1) / 3
    noisy, norms, speeds = curve + rng.normal(0, 0.02, steps), rng.gamma(20, 0.05, steps), rng.normal(2e4, 300, steps)
    lines = []
    for i in range(steps):
        line = {
            "step": int(step[i]), "tokens": int(step[i]) * TOKENS_A_STEP, "train/loss": noisy[i],
            "train/grad_norm": norms[i], "train/lr": 1e-3 * (1 - i / steps), "perf/tokens_per_s": speeds[i],
            "perf/step_ms": TOKENS_A_STEP / speeds[i] * 1e3, "perf/mfu": 0.3, "mem/peak_gb": 0.5,
        }  # fmt: skip
        if step[i] % (steps // 20) == 0 or step[i] == steps:
            line |= {"eval/loss": curve[i], "eval/bpb": curve[i] / np.log(2), "eval/accuracy": 1 / (1 + curve[i])}
        lines.append(line)
    return lines


def make(directory: Path, n_runs: int, steps: int) -> None:
    configs = {kind: config_of(kind) for kind in KINDS}
    rng = np.random.default_rng(0)
    seed_effects, points = rng.normal(0, 0.01, SEEDS), []
    for num in range(n_runs):
        design, seed = divmod(num, SEEDS)
        kind, rate = KINDS[design % len(KINDS)], float(f"{1e-3 * 1.1 ** (design // len(KINDS)):.3g}")
        loss = 3 + 0.01 * KINDS.index(kind) + 0.05 * np.log(rate / 3e-3) ** 2 + seed_effects[seed]
        lines = lines_of(rng, loss + rng.normal(0, 0.004), steps)
        words = [f"attention={kind}", f"optim.learning_rate={rate}", f"seed={seed}"]
        path = directory / f"{num}_{','.join(words)}"
        path.mkdir(parents=True)
        record = {
            "status": "ok", "seeds": {"seed": seed, "data": seed}, "params": 800_000, "flops_per_token": 4_800_000,
            "precision": "fp32", "data": {"fingerprint": "f" * 64, "eval_bytes": 100_000, "eval_targets": 100_000},
            "started": f"2026-01-31T12:00:00+00{num:03}", "device": {"name": "a CPU"}, "git": None,
        }  # fmt: skip
        evaluated = [line for line in lines if "eval/loss" in line][-1]
        summary = {k: v for k, v in evaluated.items() if k.startswith(("eval/", "train/loss", "perf/tokens", "mem/"))}
        summary |= {"status": "ok", "step": steps, "tokens": steps * TOKENS_A_STEP, "seconds": 60.0}
        outcome = {"identity": f"{num:016x}", "status": "ok", "score": summary["eval/loss"], "seconds": 60.0}
        text = configs[kind].replace("1234567", str(seed)).replace("0.0007654", repr(rate))
        (path / "config.yaml").write_text(text)
        (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        for name, content in (("run", record), ("summary", summary), ("outcome", outcome)):
            (path / f"{name}.json").write_text(json.dumps(content, indent=1))
        points.append({"num": num, "dir": path.name, "identity": f"{num:016x}", "overrides": words, "adjusted": {}})
    head = {"name": directory.name, "sweeper": "grid", "match": None, "tune": None}
    (directory / "sweep.json").write_text(json.dumps(head | {"points": points}, indent=1))


def seconds(command: list[str], cwd: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"WANDB_MODE": "disabled"})
    return time.perf_counter() - began


if __name__ == "__main__":
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "many"
        make(sweep, args.runs, args.steps)
        print(
            f"| {args.runs} runs of {args.steps:,} logged steps | seconds, median | least |\n|---|---:|---:|",
            flush=True,
        )
        for what, options in COMMANDS.items():
            command = [sys.executable, "-m", "lmxexp.compare", str(sweep), *options]
            command += [] if "csv" in options else ["--out", str(Path(folder) / "out")]
            times = [seconds(command, Path(folder)) for _ in range(args.repeats)]
            print(f"| {what} | {np.median(times):.1f} | {min(times):.1f} |", flush=True)
