"""Drawing tokens with a cache, beside mlx-lm on the same exported model; and evaluation, beside the forward pass alone.

    pip install mlx-lm
    python benchmarks/sampling.py               # llama of 124M parameters on a GPU, tiny on a CPU; --help for the rest

Both draw the likeliest tokens after one prompt, in turns, and have to draw the same. Evaluation goes over batches of
which the last is ragged; the forward pass is the compiled loss of as many batches without anything around it.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
import numpy as np

from lmxexp import device, on_cpu
from lmxexp.build import build
from lmxexp.export import export
from lmxexp.generate import generate
from lmxexp.interfaces import Batch
from lmxexp.model.build import build_model
from lmxexp.train.evaluator import Evaluator
from lmxexp.train.step import to_arrays

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", help="of the model; by default 124m on a GPU, tiny on a CPU")
parser.add_argument("--vocab", type=int, default=50257)
parser.add_argument("--prompt", type=int, default=64, help="tokens that are read before the first is drawn")
parser.add_argument("--tokens", type=int, default=128, help="drawn in a turn")
parser.add_argument("--turns", type=int, default=7)
parser.add_argument("--batches", type=int, default=4, help="of an evaluation")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--seq-len", type=int, default=256)


class Source:
    """Random tokens, of which the last batch is not whole."""

    eval_bytes = None

    def __init__(self, args: argparse.Namespace):
        shape = (args.batches, args.batch_size, args.seq_len)
        ids = np.random.default_rng(0).integers(0, args.vocab, shape).astype(np.int32)
        self.batches = [Batch(rows, rows, np.ones(rows.shape, np.float32)) for rows in ids]
        self.batches[-1].weights[1:] = 0.0

    def eval_batches(self):
        return iter(self.batches)


def in_turns(contestants: dict[str, Callable[[], Any]], n: int) -> dict[str, list[float]]:
    """Seconds of each in every turn, after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(n + 1):
        for name, work in contestants.items():
            start = time.perf_counter()
            work()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def show(seconds: dict[str, list[float]], n: int, unit: str) -> None:
    (ours, of_ours), (other, of_other) = seconds.items()
    for name, of_turns in seconds.items():
        print(f"{name:14s} {n / statistics.median(of_turns):12,.1f} {unit}/s")
    ratios = [b / a for a, b in zip(of_ours, of_other, strict=True)]
    print(
        f"{ours} is {statistics.median(ratios):.2f} times as fast as {other} ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def sampling(args: argparse.Namespace, model: Any, cfg: Any) -> None:
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import load_model

    prompt = np.random.default_rng(1).integers(0, args.vocab, args.prompt).tolist()
    with tempfile.TemporaryDirectory() as directory:
        export(model, cfg, Path(directory))
        theirs, _ = load_model(Path(directory))
    likeliest = lambda log_probabilities: mx.argmax(log_probabilities, axis=-1)
    drawn: dict[str, list[int]] = {}

    def ours() -> None:
        drawn["lmxexp"] = list(generate(model, prompt, max_tokens=args.tokens, temperature=0))

    def mlx_lm() -> None:
        steps = generate_step(mx.array(prompt), theirs, max_tokens=args.tokens, sampler=likeliest)
        drawn["mlx_lm"] = [int(token) for token, _ in steps]

    seconds = in_turns({"lmxexp": ours, "mlx_lm": mlx_lm}, args.turns)
    print(f"the same tokens: {drawn['lmxexp'] == drawn['mlx_lm']}")
    show(seconds, args.tokens, "tokens")


def evaluation(args: argparse.Namespace, model: Any, cfg: Any) -> None:
    source, loss = Source(args), build(cfg.loss)
    evaluator = Evaluator(model, loss, source)  # pyright: ignore[reportArgumentType]
    forward = mx.compile(lambda arrays: loss(model, Batch(**arrays))[0], inputs=[model.state])

    def passes() -> None:
        model.eval()
        for batch in source.batches:
            mx.eval(forward(to_arrays(batch)))

    n_tokens = args.batches * args.batch_size * args.seq_len
    show(in_turns({"evaluation": evaluator, "forward pass": passes}, args.turns), n_tokens, "tokens")


def main() -> None:
    args = parser.parse_args()
    on_cpu.prepare()
    size = args.size or ("124m" if device.is_gpu() else "tiny")
    cfg = lmxexp.compose(["model=llama", f"size={size}"])
    model = build_model(cfg, vocab_size=args.vocab)
    mx.eval(model.parameters())
    print(f"llama size={size}, {model.n_params():,} parameters, fp32, {device.device_info()['name'] or 'CPU'}")
    sampling(args, model, cfg)
    evaluation(args, model, cfg)


if __name__ == "__main__":
    main()
