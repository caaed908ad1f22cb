"""What the runner costs: its training loop against a bare hand-written MLX loop of the same step, in one process.

    python benchmarks/runner.py                 # a 2.8M-parameter llama; --help for the rest

All train a llama of the same shapes on the same batches, in the same precision, with AdamW and clipping; they take
turns, and the medians of their step times are compared. The runner's time is that of its steps, batches included, as
`perf/tokens_per_s` counts it: without logging and evaluation. Of two bare loops, one is written in MLX alone, as one
would by hand, and the other takes the runner's own compiled step: beside it the loop alone differs.

The bare loop looks tokens up by `lmxexp.ops.embed`, as the model does, so that the loops alone differ: on a GPU and
with few distinct tokens, the gradient of MLX's own look-up takes longer than all the rest (see `--mlx-embedding`).
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import lmxexp  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from hydra.utils import instantiate
from mlx.utils import tree_map

from lmxexp import device
from lmxexp.interfaces import Batch
from lmxexp.logger.loggers import Loggers
from lmxexp.ops.embed import embed
from lmxexp.optim.build import build_optimizer
from lmxexp.ramp.none import NoRamp
from lmxexp.train.precision import DTYPES, compute_dtype, resolve
from lmxexp.train.step import TrainStep
from lmxexp.train.trainer import Trainer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--d-model", type=int, default=256)
parser.add_argument("--n-layers", type=int, default=4)
parser.add_argument("--n-heads", type=int, default=8)
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--steps", type=int, default=10, help="in each turn")
parser.add_argument("--turns", type=int, default=7)
parser.add_argument(
    "--mlx-embedding", dest="ordered", action="store_false", help="the bare loop looks up tokens as MLX does"
)


class Attention(nn.Module):
    def __init__(self, d, h, k):
        super().__init__()
        self.h, self.k, self.c = h, k, d // h
        self.q, self.kk = nn.Linear(d, d, bias=False), nn.Linear(d, k * self.c, bias=False)
        self.v, self.o = nn.Linear(d, k * self.c, bias=False), nn.Linear(d, d, bias=False)
        self.rope = nn.RoPE(self.c)

    def __call__(self, x):
        B, L, _ = x.shape
        q = self.rope(self.q(x).reshape(B, L, self.h, self.c).transpose(0, 2, 1, 3))
        k = self.rope(self.kk(x).reshape(B, L, self.k, self.c).transpose(0, 2, 1, 3))
        v = self.v(x).reshape(B, L, self.k, self.c).transpose(0, 2, 1, 3)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=self.c**-0.5, mask="causal")
        return self.o(y.transpose(0, 2, 1, 3).reshape(B, L, -1))


class Layer(nn.Module):
    def __init__(self, d, h, k, f):
        super().__init__()
        self.n1, self.n2, self.attention = nn.RMSNorm(d), nn.RMSNorm(d), Attention(d, h, k)
        self.gate, self.up, self.down = (nn.Linear(*s, bias=False) for s in ((d, f), (d, f), (f, d)))

    def __call__(self, x):
        x = x + self.attention(self.n1(x))
        h = self.n2(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, v, d, n, h, k, f, ordered):
        super().__init__()
        self.ordered = ordered
        self.embed = nn.Embedding(v, d)
        self.layers = [Layer(d, h, k, f) for _ in range(n)]
        self.norm = nn.RMSNorm(d)

    def __call__(self, tokens):
        x = embed(self.embed.weight, tokens) if self.ordered else self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.as_linear(self.norm(x))


def bare_loop(args, d_ff, n_kv_heads, vocab_size, precision, batches):
    """``turn(n)``: seconds of ``n`` steps."""
    model = Llama(vocab_size, args.d_model, args.n_layers, args.n_heads, n_kv_heads, d_ff, args.ordered)
    optimizer = optimizers.AdamW(learning_rate=1e-3, betas=[0.9, 0.95], weight_decay=0.1, bias_correction=True)
    mx.eval(model.parameters())
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state, mx.random.state]

    def loss_of(params, x, y):
        model.update(tree_map(lambda p: p.astype(DTYPES[precision]), params))
        return nn.losses.cross_entropy(model(x).astype(mx.float32), y, reduction="mean")

    def step(x, y):
        params = model.trainable_parameters()
        loss, gradient = mx.value_and_grad(loss_of)(params, x, y)
        gradient, norm = optimizers.clip_grad_norm(gradient, 1.0)
        model.update(optimizer.apply_gradients(gradient, params))
        return loss, norm

    compiled = mx.compile(step, inputs=state, outputs=state)

    def turn(n):
        start = time.perf_counter()
        for i in range(n):
            out = compiled(*batches[i % len(batches)])
            mx.eval(out, model.state, optimizer.state)
        return time.perf_counter() - start

    turn(2)
    return turn


def step_loop(cfg, model, optimizer, precision, batches):
    """``turn(n)``: seconds of ``n`` of the runner's steps, each begun before the one before is looked at."""
    step = TrainStep(model, optimizer, instantiate(cfg.loss), compute_dtype=compute_dtype(precision))
    batches = [Batch(*pair) for pair in batches]

    def turn(n):
        before, start = None, time.perf_counter()
        for i in range(n):
            scalars = step(batches[i % len(batches)])
            mx.async_eval(scalars, step.state)
            if before is not None:
                mx.eval(before)
            before = scalars
        mx.eval(before, step.state)
        return time.perf_counter() - start

    turn(2)
    return turn


def runner_loop(args, cfg, source, model, optimizer, precision):
    """``turn(n)``: seconds of ``n`` steps."""

    def turn(n):
        settings = dataclasses.replace(instantiate(cfg.train), steps=n + 1)  # the first, which compiles, is not timed
        with tempfile.TemporaryDirectory() as directory:
            trainer = Trainer(
                model,
                optimizer,
                instantiate(cfg.loss),
                source,
                settings,
                ramp=NoRamp(settings.batch_size, settings.seq_len),
                callbacks={},
                logger=Loggers({}),
                run_dir=Path(directory),
                run_id="benchmark",
                precision=precision,
            )
            trainer.fit()
        assert trainer.clock.steps == n
        return trainer.clock.seconds

    return turn


def main() -> None:
    args = parser.parse_args()
    n_kv_heads = args.n_heads // 2
    cfg = lmxexp.compose(
        [
            "model=llama",
            f"model.d_model={args.d_model}",
            f"model.n_layers={args.n_layers}",
            f"model.n_heads={args.n_heads}",
            f"model.n_kv_heads={n_kv_heads}",
            f"train.batch_size={args.batch_size}",
            f"train.seq_len={args.seq_len}",
        ]
    )
    source = instantiate(cfg.data)(tokenizer=instantiate(cfg.tokenizer))
    model = lmxexp.build_model(cfg, vocab_size=source.vocab_size)
    optimizer = build_optimizer(instantiate(cfg.optim), instantiate(cfg.schedule))
    optimizer.init(model.trainable_parameters())
    precision = resolve(cfg.train.precision, on_gpu=device.is_gpu())
    d_ff = model.layers[0].mlp.up_proj.weight.shape[0]
    batches = [tuple(mx.array(a) for a in source.batch(i)[:2]) for i in range(8)]
    mx.eval(batches)

    bare = bare_loop(args, d_ff, n_kv_heads, source.vocab_size, precision, batches)
    runner = runner_loop(args, cfg, source, model, optimizer, precision)
    runner(1)
    loops = {"bare": bare, "step": step_loop(cfg, model, optimizer, precision, batches), "runner": runner}
    times: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(args.turns):
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            times[name].append(loops[name](args.steps) / args.steps)
    tokens = args.batch_size * args.seq_len
    medians = {name: statistics.median(t) for name, t in times.items()}
    print(
        f"{model.n_params() / 1e6:.1f}M parameters, {tokens} tokens a step, {precision}, {device.device_info()['name']}"
    )
    for name, seconds in medians.items():
        print(f"{name:7s} {1e3 * seconds:8.2f} ms a step  {tokens / seconds:10.0f} tokens/s")
    for name in ("bare", "step"):
        ratios = sorted(other / own for other, own in zip(times[name], times["runner"], strict=True))
        ratio = medians[name] / medians["runner"]
        print(f"runner / {name}, tokens/s: {ratio:.3f} (turns: {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
