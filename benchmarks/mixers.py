"""What each mixer costs: forward and backward against the length of the sequence, all mixers in one process.

    python benchmarks/mixers.py --json mixers.json                   # measure
    python benchmarks/mixers.py --render mixers.json OUT.md OUT.png  # table and plot of what was measured

One layer's mixer alone, in bf16 on a GPU and fp32 on a CPU, its gradient with respect to parameters and input,
compiled. A batch holds as many sequences as make ``--tokens`` tokens. The mixers take turns at each length; the median
of the turns counts. Kinds are found by looking into conf/model/attention.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import lmxexp  # noqa: F401  # isort: skip  (the BLAS, before MLX)
import mlx.core as mx
from hydra.utils import instantiate

from lmxexp import compose, device

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = "sliding"


def all_kinds() -> list[str]:
    names = (f.stem for f in (ROOT / "conf" / "model" / "attention").glob("*.yaml"))
    return sorted(n for n in names if n not in ("none",) and not n.startswith("_"))


def make_step(kind: str, sizes: list[str], batch: int, length: int, dtype: mx.Dtype):
    """A compiled function of nothing: gradients of a random projection of the mixer's output."""
    cfg = compose([f"attention={kind}", *sizes, f"train.seq_len={length}"])
    mx.random.seed(0)
    mixer = instantiate(cfg.model.attention, _convert_="all")(d_model=cfg.model.d_model, layer_idx=1)
    mixer.set_dtype(dtype)
    x = mx.random.normal((batch, length, cfg.model.d_model)).astype(dtype)
    weight = mx.random.normal(x.shape).astype(dtype)
    mx.eval(mixer.parameters(), x, weight)

    def loss(params, x):
        mixer.update(params)
        return (mixer(x) * weight).astype(mx.float32).sum()

    gradient = mx.compile(mx.value_and_grad(loss, argnums=(0, 1)))
    params = mixer.trainable_parameters()
    return lambda: mx.eval(gradient(params, x))


def measure(args: argparse.Namespace) -> dict:
    dtype = mx.bfloat16 if device.is_gpu() else mx.float32
    sizes = [f"model.d_model={args.d_model}", f"model.n_heads={args.n_heads}", f"model.n_kv_heads={args.n_kv_heads}"]
    result: dict = {"device": args.device or platform.processor() or platform.machine(), "dtype": str(dtype)[9:]}
    result |= {"mlx": mx.__version__, "tokens": args.tokens, "sizes": sizes, "turns": args.turns, "ms": {}, "gb": {}}
    for length in args.lengths:
        steps = {}
        for kind in args.kinds:
            mx.reset_peak_memory()
            try:
                start = time.perf_counter()
                step = make_step(kind, sizes, max(1, args.tokens // length), length, dtype)
                step()
                print(f"{kind} at {length}: first step {time.perf_counter() - start:.1f} s", flush=True)
                start = time.perf_counter()
                step()
                once = time.perf_counter() - start
            except Exception as error:  # out of memory, or a kind that is refused: the others go on
                print(f"{kind} at {length}: {str(error).splitlines()[0][:100]}", flush=True)
                continue
            steps[kind] = (step, max(1, int(args.seconds / max(once, 1e-4))))
            result["gb"].setdefault(kind, {})[length] = mx.get_peak_memory() / 1e9
        times: dict[str, list[float]] = {kind: [] for kind in steps}
        for _ in range(args.turns):
            for kind, (step, repeats) in steps.items():
                start = time.perf_counter()
                for _ in range(repeats):
                    step()
                times[kind].append((time.perf_counter() - start) / repeats * 1e3)
        for kind, values in times.items():
            result["ms"].setdefault(kind, {})[length] = statistics.median(values)
        print(length, {k: round(statistics.median(v), 2) for k, v in times.items()}, flush=True)
        steps.clear()
        mx.clear_cache()
        if args.json:
            args.json.write_text(json.dumps(result))
    return result


def table(result: dict) -> str:
    """Microseconds a token, and the ratio to sliding attention at the longest length that both have."""
    lengths = sorted({int(n) for row in result["ms"].values() for n in row})
    per_batch = lambda n: max(1, result["tokens"] // n) * n
    micro = {k: {int(n): ms * 1e3 / per_batch(int(n)) for n, ms in row.items()} for k, row in result["ms"].items()}
    lines = ["| mixer | " + " | ".join(map(str, lengths)) + f" | x {REFERENCE} at 4096 | GB at {lengths[-1]} |"]
    lines.append("|" + "---|" * (len(lengths) + 3))
    for kind in sorted(micro, key=lambda k: micro[k].get(4096, 1e9)):
        row = micro[kind]
        ratio = row.get(4096, float("nan")) / micro[REFERENCE].get(4096, float("nan"))
        gb = result["gb"][kind].get(str(lengths[-1]), result["gb"][kind].get(lengths[-1], float("nan")))
        cells = [f"{row[n]:.3g}" if n in row else "-" for n in lengths]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {ratio:.2f} | {gb:.1f} |")
    return "\n".join(lines)


def plot(result: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6))
    styles = ["-", "--", ":", "-."]
    # The slowest at the longest length first, as the lines end.
    by_cost = sorted(result["ms"].items(), key=lambda item: -list(item[1].values())[-1])
    for i, (kind, row) in enumerate(by_cost):
        lengths = sorted(int(n) for n in row)
        values = [row.get(str(n), row.get(n)) * 1e3 / (max(1, result["tokens"] // n) * n) for n in lengths]
        axes.plot(lengths, values, styles[i // 10 % 4], color=f"C{i % 10}", marker="o", markersize=3, label=kind)
    axes.set(xscale="log", yscale="log", xlabel="sequence length", ylabel="microseconds a token, forward and backward")
    axes.set_xscale("log", base=2)
    axes.set_title(f"{result['device']}, {result['dtype']}, {', '.join(s[6:] for s in result['sizes'])}", fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="*", default=all_kinds())
    parser.add_argument("--lengths", nargs="*", type=int, default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--tokens", type=int, default=16384, help="in a batch")
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--n-heads", type=int, default=12)
    parser.add_argument("--n-kv-heads", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of repetitions in a turn")
    parser.add_argument("--device", help="what the table calls this machine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--render", nargs=3, type=Path, metavar=("JSON", "MD", "PNG"))
    args = parser.parse_args()
    if args.render:
        source, markdown, picture = args.render
        result = json.loads(source.read_text())
        markdown.write_text(table(result) + "\n")
        plot(result, picture)
        return
    print(table(measure(args)))


if __name__ == "__main__":
    main()
