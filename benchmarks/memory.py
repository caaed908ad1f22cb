"""How close the memory ledger comes: the estimate of a training step against the peak that is measured.

    python benchmarks/memory.py                     # a grid for this machine
    python benchmarks/memory.py --case attention=mla train.n_micro=4 --vocab 50304

Each case trains three steps in a process of its own, on random tokens. The estimate is made before the first.
"""

import argparse
import json
import subprocess
import sys

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
import numpy as np

from lmxexp import device
from lmxexp.build import build
from lmxexp.interfaces import Batch
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.train import precision
from lmxexp.train.fitted import fitted
from lmxexp.train.memory import Ledger
from lmxexp.train.step import TrainStep

MIXERS = ["gqa", "mla", "sliding", "gated_deltanet", "gla", "mamba1", "mamba2", "rwkv7"]
CPU = ["size=tiny", "train.batch_size=16", "train.seq_len=128"]
GPU = ["size=124m", "train.batch_size=16", "train.seq_len=1024"]
MORE = {
    "cpu": [
        ["size=10m", "train.batch_size=4", "train.seq_len=256"],
        ["train.batch_size=4", "train.seq_len=512"],
        ["train.batch_size=64"],
    ],
    "gpu": [
        ["size=tiny", "train.batch_size=40"],
        ["size=10m", "train.batch_size=64", "train.seq_len=512"],
        ["size=350m", "train.batch_size=8"],
        ["train.batch_size=32"],
    ],
}
OTHERS = [
    ["ffn=moe"],
    ["model=deepseek_v3"],
    ["model=gpt"],
    ["train.n_micro=2"],
    ["train.n_micro=4"],
    ["train.precision=fp32"],
    ["train.precision=bf16"],
    ["train.precision=mixed"],
    ["optim=muon"],
    ["optim=soap"],
    ["loss=multi_token"],
]
COMPUTED_AGAIN = [
    *([f"attention={mixer}"] for mixer in ("gqa", "mla", "gated_deltanet", "gla", "mamba2", "rwkv7")),
    *(["ffn=moe"], ["model=gpt"], ["model.n_layers=12"], ["train.n_micro=2"], ["train.n_micro=4"]),
    *(["train.precision=mixed"], ["loss=multi_token"]),
]
"""With ``train.remat=light`` and ``block``; so are those of `MORE`."""


def measure(overrides: list[str], vocab_size: int) -> dict[str, float]:
    """Bytes: the estimate's parts and ``peak``, and what was ``measured``."""
    cfg = lmxexp.compose(overrides)
    settings = build(cfg.train)
    model = build_model(cfg, vocab_size=vocab_size)
    chosen = precision.resolve(settings.precision, on_gpu=device.is_gpu())
    if chosen == "bf16":
        model.set_dtype(mx.bfloat16)
    model.train()
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.state, optimizer.state)
    loss, compute_dtype = build(cfg.loss), precision.compute_dtype(chosen)
    ledger = Ledger(model, optimizer, loss, settings, compute_dtype)
    settings = fitted(settings, ledger)
    estimate = ledger.of(settings.parts, settings.chosen_remat)
    model.remat = settings.chosen_remat
    step = TrainStep(model, optimizer, loss, n_micro=settings.parts, compute_dtype=compute_dtype)
    shape = (settings.batch_size, settings.seq_len + 1)
    ids = np.random.default_rng(0).integers(0, vocab_size, shape).astype(np.int32)
    device.clear_cache()
    device.reset_peak_memory()
    for _ in range(3):
        scalars = step(Batch(inputs=ids[:, :-1], targets=ids[:, 1:]))
        mx.eval(scalars, step.state)
    return {**vars(estimate), "measured": mx.get_peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", help="overrides of one case; default: the grid")
    parser.add_argument("--vocab", type=int, help="default: 4096 on a CPU, 50304 on a GPU")
    parser.add_argument("--json", action="store_true", help="of one case")
    args = parser.parse_args()
    kind = "gpu" if device.is_gpu() else "cpu"
    vocab_size = args.vocab or {"cpu": 4096, "gpu": 50304}[kind]
    if args.json:
        print(json.dumps(measure(args.case, vocab_size)))
        return
    start = {"cpu": CPU, "gpu": GPU}[kind]
    cases = [[f"attention={mixer}"] for mixer in MIXERS] + OTHERS + MORE[kind]
    cases += [[*case, f"train.remat={remat}"] for case in COMPUTED_AGAIN + MORE[kind] for remat in ("light", "block")]
    print(f"{' '.join(start)}, vocabulary {vocab_size:,}, and:\n")
    print("| case | estimate, MB | measured, MB | estimate / measured |")
    print("|---|---:|---:|---:|", flush=True)
    ratios = []
    for case in [args.case] if args.case else cases:
        line = [sys.executable, __file__, "--json", "--vocab", str(vocab_size), "--case", *start, *case]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {' '.join(case)} | {done.stderr.strip().splitlines()[-1][:100]} | | |", flush=True)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        ratios.append(found["peak"] / found["measured"])
        print(
            f"| {' '.join(case)} | {found['peak'] / 1e6:,.0f} | {found['measured'] / 1e6:,.0f} | {ratios[-1]:.2f} |",
            flush=True,
        )
    print(f"\n{len(ratios)} cases, {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
