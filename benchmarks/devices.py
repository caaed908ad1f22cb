"""What several devices are worth: tokens a second, memory of each, and whether the losses are the same.

    python -m benchmarks.devices                                  # all NVIDIA GPUs of this machine, about five minutes
    python -m benchmarks.devices --backend ring -n 2 --size tiny --seq-len 64 data.vocab_size=512      # on a CPU

Each case is `python -m lmxexp`, alone or under mlx.launch, as a user starts it. Prints a table in Markdown.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
import numpy as np

from lmxexp import device
from lmxexp.data.sampling import generator, rank_rows
from lmxexp.describe import describe
from lmxexp.interfaces import Batch
from lmxexp.logger.jsonl import read_metrics

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "benchmarks" / "conf"
SPEED = ["callback=[throughput,memory,active]", "logger=[jsonl]", "data=random_tokens", "train.log_every=10"]
SAME = ["size=tiny", "model.dropout=0.1", "train.batch_size=16", "train.seq_len=128", "train.steps=20"]
SAME += ["train.log_every=1", "train.precision=fp32", "callback=[]", "logger=[jsonl]", "data=random_tokens"]
SAME += ["data.vocab_size=512"]


class RandomTokens:
    """A source of random tokens."""

    tokenizer = None
    eval_bytes = None
    reads_tokenizer = False

    def __init__(self, vocab_size: int, seq_len: int, batch_size: int, seed: int, tokenizer=None):
        del tokenizer  # offered to every source
        self.vocab_size, self.shape, self.seed = vocab_size, (batch_size, seq_len + 1), seed
        self.fingerprint, self.record = f"random-{vocab_size}-{seed}", {}

    def batch(self, index, *, rank=0, world=1):
        ids = generator(self.seed, index).integers(0, self.vocab_size, self.shape).astype(np.int32)
        ids = ids[rank_rows(self.shape[0], rank, world)]
        return Batch(ids[:, :-1], ids[:, 1:])

    def eval_batches(self):
        yield self.batch(2**40)


class Active:
    """See ``conf/callback/active.yaml``."""

    at_end = True
    after_log = False

    def __init__(self, every: int):
        self.every = every

    def __call__(self, trainer):
        mx.eval(trainer.model.parameters(), trainer.optimizer.state)
        return {"mem/active_gb": mx.get_active_memory() / 1e9}


@dataclass
class Ended:
    """A run, or why there was none."""

    lines: list[dict]
    summary: dict
    said: str

    def last(self, name: str) -> float:
        return next(line[name] for line in reversed(self.lines) if name in line)


def run(overrides: list[str], n: int, backend: str) -> Ended:
    """``n`` = 1: by itself."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = [sys.executable, "-m", "lmxexp", "--config-dir", str(CONF), *overrides, f"hydra.run.dir={run_dir}"]
        if n > 1:
            launcher = Path(sys.executable).parent / "mlx.launch"
            if not launcher.exists():
                launcher = Path("mlx.launch")
            command = [str(launcher), "-n", str(n), "--backend", backend, "--", *command]
        one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]} if n == 1 else {}
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), **one},
            stdin=subprocess.PIPE,  # open: mlx.launch looks at it all the time
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = process.communicate()[0]
        metrics, summary = run_dir / "metrics.jsonl", run_dir / "summary.json"
        if not summary.exists() or json.loads(summary.read_text())["status"] != "ok":
            return Ended([], {}, said)
        return Ended(read_metrics(metrics), json.loads(summary.read_text()), said)


def reason(ended: Ended) -> str:
    wrong = [line for line in ended.said.splitlines() if "error" in line.lower()]
    return (wrong or ended.said.splitlines() or ["nothing was said"])[-1][:300]


def speed(args: argparse.Namespace) -> None:
    print(f"\n## Speed and memory: {args.model} {args.size}, {args.per_device} sequences of {args.seq_len} a device, ")
    print(f"{args.precision}, {args.steps} steps\n")
    print("| devices | train.parallel | tokens/s | of one | ms/step | peak GB | ledger GB | state GB | ledger GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    of_one = None
    for n, parallel in ((1, None), (args.n, "data"), (args.n, "fsdp")):
        own = [f"model={args.model}", f"size={args.size}", f"train.batch_size={args.per_device * n}", *args.overrides]
        own += [f"train.seq_len={args.seq_len}", f"train.precision={args.precision}", f"train.steps={args.steps}"]
        own += [*SPEED, *([f"train.parallel={parallel}"] if parallel else [])]
        ended = run(own, n, args.backend)
        if not ended.lines:
            print(f"| {n} | {parallel} | {reason(ended)} |", flush=True)
            continue
        rate = ended.summary["perf/tokens_per_s"]
        of_one = of_one or rate
        memory = describe(lmxexp.compose(own, str(CONF)), n_devices=n).memory
        ledger = (
            [f"{size / 1e9:.3g}" for size in (memory.peak, memory.weights + memory.optimizer)] if memory else ["", ""]
        )
        print(
            f"| {n} | {parallel or ''} | {rate:,.0f} | {rate / of_one:.3f} | {ended.last('perf/step_ms'):.2f} "
            f"| {ended.summary['mem/peak_gb']:.3g} | {ledger[0]} | {ended.last('mem/active_gb'):.3g} | {ledger[1]} |",
            flush=True,
        )


def same(args: argparse.Namespace) -> None:
    print("\n## The same losses: tiny, fp32, dropout 0.1, clipping, batches of 16 in all, 20 steps\n")
    print("| optimizer | parts | devices | train.parallel | greatest relative difference of a loss to one device |")
    print("|---|---|---|---|---|")
    for optim, n_micro, ways in (("adamw", 2, ("data", "fsdp")), ("muon", 1, ("data",))):
        own = [f"model={args.model}", *SAME, f"optim={optim}", f"train.n_micro={n_micro}"]
        one = run(own, 1, args.backend)
        for parallel in ways:
            other = run([*own, f"train.parallel={parallel}"], args.n, args.backend)
            if not one.lines or not other.lines:
                print(f"| {optim} | {n_micro} | {args.n} | {parallel} | {reason(other if one.lines else one)} |")
                continue
            pairs = zip(one.lines, other.lines, strict=True)
            worst = max(abs(a["train/loss"] - b["train/loss"]) / abs(a["train/loss"]) for a, b in pairs)
            print(f"| {optim} | {n_micro} | {args.n} | {parallel} | {worst:.1e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=mx.device_count(mx.gpu) if device.is_gpu() else 2, help="devices")
    parser.add_argument("--backend", default="nccl" if mx.cuda.is_available() else "ring")
    parser.add_argument("--model", default="llama")
    parser.add_argument("--size", default="124m")
    parser.add_argument("--per-device", type=int, default=16, help="sequences")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--precision", default="bf16" if device.is_gpu() else "fp32")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", choices=["speed", "same"], help="half of it")
    parser.add_argument("overrides", nargs="*", help="more of `python -m lmxexp`")
    args = parser.parse_intermixed_args()
    info = device.device_info()
    print(f"{info['name'] or info['cpu']}, {args.n} of them, mlx {version('mlx')}: {' '.join(sys.argv)}")
    if args.only != "same":
        speed(args)
    if args.only != "speed":
        same(args)


if __name__ == "__main__":
    main()
