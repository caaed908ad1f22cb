"""What each optimizer's update costs, and what a step of many tokens costs with it.

    python benchmarks/optimizers.py                                  # on a GPU: llama of 124M parameters
    python benchmarks/optimizers.py --size tiny --seq-len 64 --optim adamw muon soap

The gradient of one micro-batch is timed once, as it is the same for all; the update of each optimizer by itself, on
ready gradients, compiled, rounds of all interleaved. A step of ``--tokens`` tokens is so many gradients and one update.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
from mlx.utils import tree_map

from lmxexp import device
from lmxexp.build import build
from lmxexp.cli import conf
from lmxexp.interfaces import Batch
from lmxexp.model.build import build_model
from lmxexp.optim.build import groups_of, optimizer_of
from lmxexp.train import precision
from lmxexp.train.precision import cast

KINDS = sorted(conf.kinds(conf.conf_dir(), "optim"))

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--optim", nargs="+", default=KINDS)
parser.add_argument("--size", default="124m")
parser.add_argument("--vocab", type=int, default=50304)
parser.add_argument("--batch-size", type=int, default=32, help="sequences of a micro-batch")
parser.add_argument("--seq-len", type=int, default=1024)
parser.add_argument("--tokens", type=int, default=524_288, help="of an optimizer step")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--updates", type=int, default=10, help="in a round: preconditioners take turns over several")
parser.add_argument("--more", nargs="*", default=[], help="further overrides")


def composed(args: argparse.Namespace, kind: str) -> Any:
    overrides = [f"optim={kind}", f"size={args.size}", f"train.seq_len={args.seq_len}"]
    return lmxexp.compose([*overrides, f"train.batch_size={args.batch_size}", *args.more])


def gradient_of(args: argparse.Namespace, model: Any, cfg: Any) -> Callable[[], Any]:
    tokens = mx.random.randint(0, args.vocab, (args.batch_size, args.seq_len + 1), key=mx.random.key(0))
    batch = Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:])
    loss = build(cfg.loss)
    chosen = precision.resolve(cfg.train.precision, on_gpu=device.is_gpu())
    dtype = precision.compute_dtype(chosen)

    def loss_of(parameters: Any) -> mx.array:
        model.update(parameters if dtype is None else cast(parameters, dtype))
        return loss(model, batch)[0]

    parameters = model.trainable_parameters()
    compiled = mx.compile(mx.grad(loss_of))

    def gradient() -> Any:
        found = compiled(parameters)
        mx.eval(found)
        return found

    gradient()
    model.update(parameters)
    return gradient


class Update:
    """One optimizer with its state, compiled."""

    def __init__(self, args: argparse.Namespace, kind: str, parameters: Any, gradient: Any):
        self.kind, self.gradient = kind, gradient
        self.parameters = tree_map(lambda a: mx.array(a), parameters)
        optimizer = optimizer_of(composed(args, kind))
        optimizer.init(self.parameters)
        groups = groups_of(optimizer, self.parameters)
        self.state_bytes = sum(group.state_bytes for group in groups)
        self.state = [self.parameters, optimizer.state]
        mx.eval(self.state)

        def update(gradient: Any) -> None:
            self.parameters.update(optimizer.apply_gradients(gradient, self.parameters))

        self.compiled = mx.compile(update, inputs=self.state, outputs=self.state)

    def __call__(self, n: int) -> float:
        """Seconds of one of ``n`` updates."""
        start = time.perf_counter()
        for _ in range(n):
            self.compiled(self.gradient)
            mx.async_eval(self.state)
        mx.eval(self.state)
        return (time.perf_counter() - start) / n


def main() -> None:
    args = parser.parse_args()
    kinds = list(dict.fromkeys(["adamw", *args.optim]))
    cfg = composed(args, "adamw")
    model = build_model(cfg, vocab_size=args.vocab)
    model.train()
    n_params = model.n_params()
    gradient = gradient_of(args, model, cfg)
    times = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        found = gradient()
        times.append(time.perf_counter() - start)
    of_gradient = statistics.median(times)
    n_micro = max(1, args.tokens // (args.batch_size * args.seq_len))
    print(device.device_info().get("name") or device.device_info().get("device_name"), mx.default_device())
    print(
        f"{n_params / 1e6:.1f}M parameters; a gradient of {args.batch_size} x {args.seq_len} tokens takes "
        f"{of_gradient * 1e3:.1f} ms, a step of {args.tokens:,} tokens {n_micro} of them"
    )
    print("| optimizer | bytes of state / parameter | update, ms | to adamw | a step, ms | to adamw |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for kind in kinds:
        # One other at a time: the states of all would not fit. AdamW is timed again beside each, for the ratio.
        update, adamw = (Update(args, k, model.trainable_parameters(), found) for k in (kind, "adamw"))
        update(args.updates)
        adamw(args.updates)
        rounds = [(update(args.updates), adamw(args.updates)) for _ in range(args.rounds)]
        own, beside = (statistics.median(column) for column in zip(*rounds, strict=True))
        step, step_of_adamw = n_micro * of_gradient + own, n_micro * of_gradient + beside
        print(
            f"| {kind} | {update.state_bytes / n_params:.2f} | {own * 1e3:.2f} | {own / beside:.2f} "
            f"| {step * 1e3:.1f} | {step / step_of_adamw:.3f} |",
            flush=True,
        )
        del update, adamw
        device.clear_cache()


if __name__ == "__main__":
    main()
