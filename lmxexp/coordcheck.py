"""``python -m lmxexp.coordcheck model=… init=mup``: do activations keep their size from narrow to wide models?

A parametrisation lets hyperparameters of a narrow model hold for a wide one if the first steps change what the layers
compute by the same amount at every width. This trains a few steps at several widths and looks.

Source: G. Yang et al., 2022, Tensor Programs V, https://arxiv.org/abs/2203.03466, appendix D.1.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx
    from omegaconf import DictConfig

    from lmxexp.model.language_model import LanguageModel

HEAD_DIM = 32
"""Heads are added with the width, and keep theirs."""


@dataclass(frozen=True)
class Sizes:
    """Root mean squares of one activation, by width and step: ``[width][step]``, means over seeds."""

    name: str
    values: list[list[float]]

    def drift(self, step: int) -> float:
        """The largest over the smallest among the widths, after ``step`` steps."""
        column = [of_width[step] for of_width in self.values]
        return max(column) / max(min(column), 1e-30)


def coordinate_check(
    overrides: Sequence[str], widths: Sequence[int], steps: int, seeds: Sequence[int], config_dir: str | None = None
) -> list[Sizes]:
    """Train at every width and measure on the first batch.

    Args:
        overrides: as of ``python -m lmxexp``; ``model.d_model`` and the heads are set here.
        widths: D, multiples of `HEAD_DIM`.
        steps: optimizer steps, each on a batch of its own.
        seeds: of the weights; the mean over them is what comes out.
        config_dir: the user's own kinds.

    Returns:
        Of the change since the start in: the stream after the embedding and after every layer, and the logits; and the
        size of the logits themselves. Step 0 is before training.

    Raises:
        ConfigError: a width that is no multiple of `HEAD_DIM`, or a setting that cannot work.
    """
    from lmxexp.cli.errors import refuse
    from lmxexp.cli.validate import check
    from lmxexp.compose import compose

    found: dict[str, list[list[float]]] = {}
    for width in widths:
        if width < HEAD_DIM or width % HEAD_DIM:
            refuse(f"--widths {width} must be a multiple of {HEAD_DIM}, the width of a head")
        of_width: dict[str, list[float]] = {}
        for seed in seeds:
            n_heads = width // HEAD_DIM
            cfg = compose(
                [
                    *overrides,
                    f"model.d_model={width}",
                    f"model.n_heads={n_heads}",
                    f"model.n_kv_heads={max(1, n_heads // 2)}",
                    f"seed={seed}",
                ],
                config_dir,
            )
            check(cfg)
            for name, values in _of_one(cfg, steps).items():
                mean = of_width.setdefault(name, [0.0] * (steps + 1))
                of_width[name] = [m + v / len(seeds) for m, v in zip(mean, values, strict=True)]
            gc.collect()  # a compiled step holds itself, its model and its optimizer
        for name, values in of_width.items():
            found.setdefault(name, []).append(values)
    return [Sizes(name, values) for name, values in found.items()]


def _of_one(cfg: DictConfig, steps: int) -> dict[str, list[float]]:
    import mlx.core as mx

    from lmxexp.build import build
    from lmxexp.data.build import build_source
    from lmxexp.model.build import build_model
    from lmxexp.optim.build import optimizer_of
    from lmxexp.ramp.build import ramp_of
    from lmxexp.train.step import TrainStep

    source = build_source(cfg)
    model = build_model(cfg, vocab_size=source.vocab_size)
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    ramp = ramp_of(cfg)
    step = TrainStep(
        model,
        optimizer,
        build(cfg.loss),
        max_grad_norm=cfg.train.max_grad_norm,
        stages=ramp.stages,
        compile=steps > 1,
    )
    tokens = mx.array(source.batch(0).inputs)
    start = _activations(model, tokens)
    sizes: dict[str, list[float]] = {f"change of {name}": [0.0] for name in start}
    sizes["logits"] = [_rms(start["logits"])]
    model.train()
    for i in range(steps):
        mx.eval(step(ramp.batch(source, i)), step.state)
        now = _activations(model, tokens)
        for name, before in start.items():
            sizes[f"change of {name}"].append(_rms(now[name] - before))
        sizes["logits"].append(_rms(now["logits"]))
    return sizes


def _activations(model: LanguageModel, tokens: mx.array) -> dict[str, mx.array]:
    training = model.training
    model.eval()
    with _recorded(model) as found:
        found["logits"] = model(tokens)
    model.train(training)
    return found


@contextmanager
def _recorded(model: LanguageModel) -> Iterator[dict[str, mx.array]]:
    found: dict[str, mx.array] = {}

    class Recorder:
        def __init__(self, i: int, layer: Any):
            self.i, self.layer = i, layer

        def __call__(self, x: mx.array, **rest: Any) -> Any:
            if self.i == 0:
                found["the stream after the embedding"] = x
            y, aux = self.layer(x, **rest)
            found[f"the stream after layer {self.i}"] = y
            return y, aux

    layers = model.layers
    model.layers = [Recorder(i, layer) for i, layer in enumerate(layers)]
    try:
        yield found
    finally:
        model.layers = layers


def _rms(x: mx.array) -> float:
    import mlx.core as mx

    from lmxexp.ops.trees import number

    return number(mx.sqrt(mx.square(x.astype(mx.float32)).mean()))


def show(sizes: Sequence[Sizes], widths: Sequence[int]) -> None:
    """Print a table: root mean squares after the last step by width, and how far they drift."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("root mean square")
    for width in widths:
        table.add_column(str(width), justify="right")
    table.add_column("largest / smallest", justify="right")
    for of_one in sizes:
        last = len(of_one.values[0]) - 1
        table.add_row(of_one.name, *(f"{v[last]:.4g}" for v in of_one.values), f"{of_one.drift(last):.2f}")
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)


def draw(sizes: Sequence[Sizes], widths: Sequence[int], title: str, path: Path) -> None:
    """A picture: one panel for each activation, one line for each step, relative to the first width."""
    from lmxexp.compare import figures

    with figures.style():
        import matplotlib.pyplot as plt

        n_columns = min(5, len(sizes))
        n_rows = -(-len(sizes) // n_columns)
        fig, axes = plt.subplots(
            n_rows,
            n_columns,
            figsize=(2.6 * n_columns, 2.6 * n_rows),
            squeeze=False,
            sharey=True,
            layout="constrained",
        )
        for ax, of_one in zip(axes.flat, sizes, strict=False):
            for step in range(1, len(of_one.values[0])):
                relative = [v[step] / of_one.values[0][step] for v in of_one.values]
                ax.plot(widths, relative, marker="o", markersize=3, label=f"step {step}")
            ax.set_xscale("log", base=2)
            ax.set_yscale("log")
            ax.set_xticks(widths, [str(w) for w in widths])
            ax.set_title(of_one.name.replace("change of ", "change of\n"), fontsize=9)
        for ax in axes.flat[len(sizes) :]:
            ax.set_visible(False)
        axes[0, 0].legend(fontsize=7)
        fig.suptitle(title)
        fig.supxlabel("width", fontsize=9)
        fig.supylabel(f"times that of width {widths[0]}", fontsize=9)
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path)
        plt.close(fig)


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit code."""
    from lmxexp.cli import command, errors

    parser = argparse.ArgumentParser(
        prog="python -m lmxexp.coordcheck",
        description="What the first training steps change of the activations, at several widths: the same at all of "
        "them, if hyperparameters are to hold from narrow to wide.",
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", help="as of `python -m lmxexp`: model=llama init=mup optim=adamw …")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512], metavar="D")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 1 to N, whose mean is shown")
    parser.add_argument("--out", type=Path, default=Path("outputs/coordcheck"), metavar="DIR", help="for the picture")
    parser.add_argument("--config-dir", metavar="DIR", help="your own kinds, as of `python -m lmxexp`")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_intermixed_args(argv)

    def work() -> None:
        for name in ("steps", "seeds"):
            if getattr(args, name) < 1:
                errors.refuse(f"--{name}={getattr(args, name)} must be at least 1")
        seeds = range(1, args.seeds + 1)
        sizes = coordinate_check(args.overrides, args.widths, args.steps, seeds, args.config_dir)
        if args.json:
            print(json.dumps({"widths": args.widths, "sizes": {s.name: s.values for s in sizes}}, indent=2))
            return
        show(sizes, args.widths)
        from lmxexp.compose import compose

        choice = compose(args.overrides, args.config_dir).choice
        title = " ".join(f"{key}={choice.get(key)}" for key in ("model", "init", "optim"))
        path = args.out / f"{title.replace(' ', '_').replace('=', '-')}.png"
        draw(sizes, args.widths, title, path)
        print(f"the picture is {path}")

    return command.run_composed(args.overrides, work)


if __name__ == "__main__":
    sys.exit(main())
