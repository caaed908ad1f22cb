"""The kernels of a training step on a CUDA device, and what each takes by the device's clock.

Needs PyTorch, whose profiler sees those of the whole process.

    python benchmarks/kernels.py size=124m train.batch_size=32 train.seq_len=1024
    python benchmarks/kernels.py --vocab 256 --top 10 size=tiny

What is not an option is lmxexp's configuration. The step is `lmxexp.bench`'s, on random tokens. Kernels run one after
the other here, without CUDA's graphs: beside each other they would be counted twice.
"""

import argparse
import os
from collections import defaultdict

os.environ["MLX_USE_CUDA_GRAPHS"] = "0"  # MLX reads it once

import lmxexp  # isort: skip
import mlx.core as mx

from lmxexp.bench.own import OwnStep

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
parser.add_argument("--vocab", type=int, default=50257)
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--top", type=int, default=40, help="kernels that are shown, the longest first")
OF_LIBRARIES = ("nvjet", "cublas", "cutlass", "cudnn")
"""In the names of kernels of cuBLAS and cuDNN."""


def by_name(step: OwnStep, n_steps: int) -> dict[str, list[float]]:
    """Milliseconds of every launch in ``n_steps`` steps."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.zeros(1, device="cuda")
    step.run(3)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step.run(n_steps)
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiled.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found[event.name].append(event.device_time_total / 1e3)
    return found


def main() -> None:
    args = parser.parse_args()
    if not mx.cuda.is_available():
        parser.error("there is no CUDA device")
    found = by_name(OwnStep(lmxexp.compose(args.overrides), args.vocab), args.steps)
    per_step = {name: sum(times) / args.steps for name, times in found.items()}
    of_libraries = sum(ms for name, ms in per_step.items() if any(library in name for library in OF_LIBRARIES))
    total, launches = sum(per_step.values()), sum(map(len, found.values())) / args.steps
    print(f"{' '.join(args.overrides)}: {total:.2f} ms a step in {launches:.0f} launches;", end=" ")
    print(f"{total - of_libraries:.2f} ms without cuBLAS's and cuDNN's\n")
    print("| ms a step | launches | us each | kernel |\n|---:|---:|---:|---|")
    for name, ms in sorted(per_step.items(), key=lambda item: -item[1])[: args.top]:
        n = len(found[name]) / args.steps
        print(f"| {ms:.3f} | {n:.1f} | {1e3 * ms / n:.1f} | {name.replace('|', ' ')[:120]} |")


if __name__ == "__main__":
    main()
