"""Members of a population in one step against the same members one after the other, in one process.

    python benchmarks/population.py                       # 16 members, d 256, 4 layers, batch 8, length 256
    python benchmarks/population.py --members 1 4 16 64 --more model.d_model=128

Rounds of both are interleaved; the table has the median step of all members, total tokens/s, their ratio and the peak
memory of the population, of which its members' parameters and optimizer states are a part.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import mlx.core as mx

import lmxexp
from lmxexp import device
from lmxexp.build import build
from lmxexp.optim.build import build_optimizer
from lmxexp.population.step import PopulationStep
from lmxexp.run import build_model, build_source
from lmxexp.train import precision
from lmxexp.train.step import TrainStep

MODEL = ["model.d_model=256", "model.n_layers=4", "model.n_heads=8", "model.n_kv_heads=4", "train.batch_size=8"]
MODEL += ["train.seq_len=256", "data=mqar", "data.vocab_size=256", "data.n_pairs=8", "data.n_eval=8"]

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--members", type=int, nargs="+", default=[16])
parser.add_argument("--steps", type=int, default=10, help="in a round")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--more", nargs="*", default=[], help="further overrides")


def parts(seed: int, more: list[str]):
    cfg = lmxexp.compose([*MODEL, *more, f"seed={seed}"])
    source = build_source(cfg)
    model = build_model(cfg, vocab_size=source.vocab_size)
    model.train()
    optimizer = build_optimizer(build(cfg.optim), build(cfg.schedule))
    optimizer.init(model.trainable_parameters())
    chosen = precision.resolve(cfg.train.precision, on_gpu=device.is_gpu())
    kept = {"compute_dtype": precision.DTYPES[chosen] if chosen == "mixed" else None}
    return cfg, source, model, optimizer, build(cfg.loss), {**kept, "max_grad_norm": cfg.train.max_grad_norm}


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    args = parser.parse_args()
    print(device.device_info().get("name"), mx.default_device())
    print("| members | one by one, ms | together, ms | tokens/s one by one | together | ratio | peak GB |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for n in args.members:
        of_all = [parts(seed, args.more) for seed in range(n)]
        cfg = of_all[0][0]
        batches = [[source.batch(i) for i in range(args.steps)] for _, source, *_ in of_all]
        steps = [TrainStep(model, optimizer, loss, **kept) for _, _, model, optimizer, loss, kept in of_all]
        keys = [mx.random.key(i) for i in range(n)]
        _, _, models, optimizers, losses, kept = zip(*of_all, strict=True)
        population = PopulationStep(models, optimizers, losses, keys, **kept[0])

        def one_by_one(steps=steps, batches=batches) -> None:
            for step, own in zip(steps, batches, strict=True):
                for batch in own:
                    scalars = step(batch)
                    mx.async_eval(scalars, step.state)
                mx.eval(scalars, step.state)

        def together(population=population, batches=batches) -> None:
            for of_step in zip(*batches, strict=True):
                scalars = population(of_step)
                mx.async_eval(scalars, population.state)
            mx.eval(scalars, population.state)

        one_by_one()
        together()
        device.reset_peak_memory()
        together()
        peak = device.peak_memory_gb()
        rounds = [(timed(one_by_one), timed(together)) for _ in range(args.rounds)]
        alone, joint = (statistics.median(column) / args.steps for column in zip(*rounds, strict=True))
        tokens = n * cfg.train.batch_size * cfg.train.seq_len
        ratio = statistics.median(a / b for a, b in rounds)
        print(
            f"| {n} | {alone * 1e3:.1f} | {joint * 1e3:.1f} | {tokens / alone:,.0f} | {tokens / joint:,.0f} "
            f"| {ratio:.2f} | {peak:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
