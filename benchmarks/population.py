"""Members of a population in one step against the same members one after the other, in one process.

    python benchmarks/population.py                # 16 members, d 256, 4 layers, batch 8, length 256
    python benchmarks/population.py --sizes 128x4 256x4 512x8 --members 1 2 4 8 16 32 64 --torch --save curves

Rounds of both, and of PyTorch's compiled step where asked for, are interleaved; the table has the median step of all
members, total tokens/s, the median ratio and the peak memory of the population's steps, of which its members'
parameters and optimizer states are a part. One after the other is measured on four members at most and taken times
their number, since each has its own step and does the same.
"""

import argparse
import copy
import csv
import statistics
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx

from lmxexp import device
from lmxexp.build import build
from lmxexp.data.build import build_source
from lmxexp.model.build import build_model
from lmxexp.optim.build import build_optimizer
from lmxexp.population.step import PopulationStep
from lmxexp.train import precision
from lmxexp.train.step import TrainStep

DATA = ["data=mqar", "data.vocab_size=256", "data.n_pairs=8", "data.n_eval=8"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--members", type=int, nargs="+", default=[16])
parser.add_argument("--sizes", nargs="+", default=["256x4"], help="width x layers")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--steps", type=int, default=10, help="in a round")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--torch", action="store_true", help="PyTorch's compiled step too, one after the other")
parser.add_argument("--save", type=Path, help="FILE.csv and FILE.png")
parser.add_argument("--more", nargs="*", default=[], help="further overrides")


@cache
def configuration(size: str, batch_size: int, seq_len: int, more: tuple[str, ...]):
    d_model, n_layers = size.split("x")
    n_heads = int(d_model) // 32
    shape = [f"model.d_model={d_model}", f"model.n_layers={n_layers}", f"model.n_heads={n_heads}"]
    shape += [f"model.n_kv_heads={n_heads // 2}", f"train.batch_size={batch_size}"]
    return lmxexp.compose([*shape, f"train.seq_len={seq_len}", *DATA, *more])


def parts(args: argparse.Namespace, size: str, seed: int):
    cfg = copy.deepcopy(configuration(size, args.batch_size, args.seq_len, tuple(args.more)))
    cfg.seed = seed
    source = build_source(cfg)
    model = build_model(cfg, vocab_size=source.vocab_size)
    model.train()
    optimizer = build_optimizer(build(cfg.optim), build(cfg.schedule))
    optimizer.init(model.trainable_parameters())
    chosen = precision.resolve(cfg.train.precision, on_gpu=device.is_gpu())
    kept = {"compute_dtype": precision.compute_dtype(chosen)}
    return cfg, source, model, optimizer, build(cfg.loss), {**kept, "max_grad_norm": cfg.train.max_grad_norm}


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def torch_rounds(args: argparse.Namespace, size: str, model: Any, source: Any) -> list[Callable[[int], float]]:
    """PyTorch's step of the same shapes, as `torch.compile` makes it and with CUDA graphs."""
    import torch

    from lmxexp.bench import torch_llama
    from lmxexp.bench.shape import Shape

    d_model, n_layers = (int(n) for n in size.split("x"))
    n_heads, d_ff = d_model // 32, model.layers[0].mlp.up_proj.weight.shape[0]
    shape = Shape(source.vocab_size, d_model, n_layers, n_heads, n_heads // 2, 32, d_ff, args.seq_len)
    on_gpu = torch.cuda.is_available()
    batches = [source.batch(i)[:2] for i in range(4)]
    torch.compiler.reset()  # beyond eight shapes it would go on uncompiled
    runs = []
    for mode in ("default", "reduce-overhead"):
        peer = torch_llama.Llama(shape).to("cuda" if on_gpu else "cpu")
        counts = model.n_params(), peer.n_params()
        assert counts[0] == counts[1], f"{counts} parameters: not the same model"
        chosen = precision.resolve("auto", on_gpu=on_gpu)
        training = torch_llama.Training(peer, precision=chosen, compile=True, mode=mode)
        run = lambda n, training=training: training.run([batches[i % 4] for i in range(n)])
        run(3)
        runs.append(run)
    return runs


def measure(args: argparse.Namespace, size: str, n: int, torch_runs: list[Callable[[int], float]]) -> dict[str, Any]:
    of_all = [parts(args, size, seed) for seed in range(n)]
    cfg, _, model, *_ = of_all[0]
    batches = [[source.batch(i) for i in range(args.steps)] for _, source, *_ in of_all]
    n_alone = min(n, 4)
    steps = [TrainStep(model, optimizer, loss, **kept) for _, _, model, optimizer, loss, kept in of_all[:n_alone]]
    keys = [mx.random.key(i) for i in range(n)]
    _, _, models, optimizers, losses, kept = zip(*of_all, strict=True)
    population = PopulationStep(models, optimizers, losses, keys, **kept[0])

    def one_by_one() -> None:
        for step, own in zip(steps, batches, strict=False):
            for batch in own:
                scalars = step(batch)
                mx.async_eval(scalars, step.state)
            mx.eval(scalars, step.state)

    def together() -> None:
        for of_step in zip(*batches, strict=True):
            scalars = population(of_step)
            mx.async_eval(scalars, population.state)
        mx.eval(scalars, population.state)

    one_by_one()
    compiled = timed(together)
    device.clear_cache()
    device.reset_peak_memory()
    together()
    peak = device.peak_memory_gb()
    rounds = []
    for _ in range(args.rounds):
        seconds = [timed(one_by_one) / n_alone * n, timed(together)]
        seconds += [timed(lambda run=run: run(args.steps)) * n for run in torch_runs]
        rounds.append([s / args.steps for s in seconds])
    alone, joint, *others = (statistics.median(column) for column in zip(*rounds, strict=True))
    tokens = n * cfg.train.batch_size * cfg.train.seq_len
    ratios = [statistics.median(row[i] / row[1] for row in rounds) for i in (0, *range(2, len(rounds[0])))]
    return {
        "size": size,
        "parameters": f"{model.n_params() / 1e6:.1f}M",
        "members": n,
        "one by one, ms": f"{alone * 1e3:.1f}",
        "together, ms": f"{joint * 1e3:.1f}",
        "tokens/s one by one": f"{tokens / alone:.0f}",
        "tokens/s together": f"{tokens / joint:.0f}",
        "ratio": f"{ratios[0]:.2f}",
        **{f"to {name}": f"{r:.2f}" for name, r in zip(("torch.compile", "CUDA graphs"), ratios[1:], strict=False)},
        **{f"{name}, ms": f"{s * 1e3:.1f}" for name, s in zip(("torch.compile", "CUDA graphs"), others, strict=False)},
        "peak GB": f"{peak:.2f}",
        "first round s": f"{compiled:.1f}",
    }


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for size in dict.fromkeys(row["size"] for row in rows):
        own = [row for row in rows if row["size"] == size]
        x = [row["members"] for row in own]
        label = f"{own[0]['parameters']} parameters (width {size.replace('x', ', ')} layers)"
        left.plot(x, [float(row["ratio"]) for row in own], marker="o", label=label)
        right.plot(x, [float(row["peak GB"]) for row in own], marker="o", label=label)
    left.axhline(1, color="grey", linewidth=0.8)
    left.set(ylabel="times as fast as one after the other", title="Speed-up of training together")
    right.set(ylabel="peak memory, GB", title="Memory", yscale="log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row["members"] for row in rows}), sorted({row["members"] for row in rows}))
        axes.set(xlabel="members of the population")
        axes.grid(alpha=0.3)
    left.legend()
    fig.savefig(path, dpi=110)


def main() -> None:
    args = parser.parse_args()
    print(device.device_info().get("name") or device.device_info().get("device_name"), mx.default_device())
    rows: list[dict[str, Any]] = []
    for size in args.sizes:
        torch_runs = []
        if args.torch:
            _, source, model, *_ = parts(args, size, 0)
            torch_runs = torch_rounds(args, size, model, source)
        for n in args.members:
            try:
                rows.append(measure(args, size, n, torch_runs))
            except RuntimeError as error:
                print(f"{size}, {n} members: {error}", file=sys.stderr, flush=True)
                break
            finally:
                device.clear_cache()
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n|" + "---:|" * len(rows[0]), flush=True)
            print("| " + " | ".join(str(v) for v in rows[-1].values()) + " |", flush=True)
            if args.save:
                with args.save.with_suffix(".csv").open("w", newline="") as file:
                    writer = csv.DictWriter(file, list(rows[0]))
                    writer.writeheader()
                    writer.writerows(rows)
    if args.save:
        picture(rows, args.save.with_suffix(".png"))


if __name__ == "__main__":
    main()
