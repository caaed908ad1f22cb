"""Times matrix products and a small training step with and without the BLAS that lmxexp loads.

    python benchmarks/blas.py

Prints a Markdown table: GFLOP/s of square products (fp32, bf16), and milliseconds of one AdamW step of a transformer of
4 layers and width 128 on 8 x 256 tokens, fp32. Every row is a process of its own, as MLX is bound to a BLAS once.
Run it on an idle machine.
"""

import json
import os
import subprocess
import sys
import time

from lmxexp import blas  # at the top: it has to be there before MLX is

ROWS = [
    ("off", "all", True),
    ("auto", "1", True),
    ("auto", "all", True),
    ("auto", "all", False),
]


def training_step_ms(*, compiled: bool) -> float:
    """The fastest of several steps: the machine's other work only ever adds."""
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(256, 128)
            self.layers = nn.TransformerEncoder(4, 128, 4, 344, norm_first=True)

        def __call__(self, x: mx.array) -> mx.array:
            mask = nn.MultiHeadAttention.create_additive_causal_mask(x.shape[1])
            return self.embedding.as_linear(self.layers(self.embedding(x), mask))

    mx.random.seed(0)
    model, optimizer = Model(), optim.AdamW(learning_rate=1e-3)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    tokens = mx.random.randint(0, 256, (8, 257))
    mx.eval(state, tokens)

    def loss(model: nn.Module) -> mx.array:
        return nn.losses.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:], reduction="mean")

    def step() -> mx.array:
        value, gradients = nn.value_and_grad(model, loss)(model)
        optimizer.update(model, gradients)
        return value

    run = mx.compile(step, inputs=state, outputs=state) if compiled else step
    mx.eval(run(), state)
    seconds, deadline = [], time.perf_counter() + 5
    while len(seconds) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        mx.eval(run(), state)
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def one_row(compiled: bool) -> dict:
    import mlx.core as mx

    return {
        "blas": blas.which().kind,
        "fp32": blas.measure(mx.float32, budget_s=1),
        "bf16": blas.measure(mx.bfloat16, budget_s=1),
        "step_ms": training_step_ms(compiled=compiled),
    }


def main() -> None:
    print("| LMXEXP_BLAS | threads | compiled | BLAS | fp32 GFLOP/s | bf16 GFLOP/s | step ms |")
    print("|---|---|---|---|---|---|---|")
    for choice, threads, compiled in ROWS:
        environment = {**os.environ, "LMXEXP_BLAS": choice}
        environment.pop("OPENBLAS_NUM_THREADS", None)
        if threads != "all":
            environment["OPENBLAS_NUM_THREADS"] = threads
        command = [sys.executable, __file__, "--row", str(int(compiled))]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(done.stdout.splitlines()[-1])
        numbers = f"{row['fp32']:.1f} | {row['bf16']:.1f} | {row['step_ms']:.0f}"
        print(f"| {choice} | {threads} | {compiled} | {row['blas']} | {numbers} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(one_row(bool(int(sys.argv[2])))))
    else:
        main()
