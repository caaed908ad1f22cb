"""The training step on a CPU: lmxexp's, that of other trainers on MLX's wheel as it comes, and PyTorch's.

    pip install torch mlx-lm lmxlab
    python benchmarks/cpu.py --size tiny
    python benchmarks/cpu.py --size 10m --batch-size 4 --seq-len 256
    python benchmarks/cpu.py --lmxlab-python VENV/bin/python    # lmxlab wants Python 3.12: an environment of its own

`python -m lmxexp.bench` compares within one process, which has one BLAS. Here each contestant is a process with a BLAS
and a number of threads, and they take turns: all but one wait. Each peer is checked as there: the same parameters, the
same loss at the same weights, the same losses in the first three steps. The peers on the wheel's BLAS are left as they
come, without what lmxexp does to be fast on a CPU. Ratios are to lmxexp with its BLAS and as many threads.

On a machine that others use, CPU time (of all threads of the process) says more than the clock, and with --quiet turns
are taken again in which others took the cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FAST, SLOW = 4, 1
"""Steps of a turn."""

# name: what trains, LMXEXP_BLAS, threads, steps of a turn
CONTESTANTS = {
    "lmxexp": ("lmxexp", "auto", 1, FAST),
    "lmxexp, 2 threads": ("lmxexp", "auto", 2, FAST),
    "PyTorch eager": ("torch", "auto", 1, FAST),
    "PyTorch eager, 2 threads": ("torch", "auto", 2, FAST),
    "lmxexp, the wheel's BLAS": ("lmxexp", "off", 1, SLOW),
    "mlx-lm, the wheel's BLAS": ("mlx_lm", "off", 1, SLOW),
    "lmxlab, the wheel's BLAS": ("lmxlab", "off", 1, SLOW),
    "mlx-lm, lmxexp's BLAS": ("mlx_lm", "auto", 1, FAST),
    "lmxlab, lmxexp's BLAS": ("lmxlab", "auto", 1, FAST),
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--size", default="tiny", help="of the llama that all train")
parser.add_argument("--batch-size", type=int, default=16)
parser.add_argument("--seq-len", type=int, default=128)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--lmxlab-python", default=sys.executable, metavar="FILE", help="the interpreter that has lmxlab")
parser.add_argument(
    "--quiet",
    type=float,
    metavar="CORES",
    help="take a turn again if others took so much of its cores",
)
parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of {', '.join(CONTESTANTS)}")
parser.add_argument("--worker", help=argparse.SUPPRESS)


class Worker:
    """A contestant in its process, which answers each line that it is sent with one."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, (self.trainer, blas, self.threads, self.n_steps) = name, CONTESTANTS[name]
        python = args.lmxlab_python if self.trainer == "lmxlab" else sys.executable
        environment = {
            **os.environ,
            "LMXEXP_BLAS": blas,
            "OPENBLAS_NUM_THREADS": str(self.threads),
            "OMP_NUM_THREADS": str(self.threads),
        }
        sizes = [f"--size={args.size}", f"--batch-size={args.batch_size}", f"--seq-len={args.seq_len}"]
        command = [python, __file__, *sizes, f"--rounds={args.rounds}", f"--worker={name}"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.others: list[float] = []
        self.about = self._answer()

    def turn(self, quiet: float | None) -> None:
        """Whatever others do meanwhile, or again until they leave the cores that are wanted, a minute at most."""
        assert self.process.stdin is not None
        deadline = time.perf_counter() + 60
        while True:
            busy, start = busy_seconds(), time.perf_counter()
            print("turn", file=self.process.stdin, flush=True)
            answer = self._answer()
            now = time.perf_counter()
            self.others.append((busy_seconds() - busy - answer["busy"]) / (now - start))
            if quiet is None or self.others[-1] <= quiet + (os.cpu_count() or 1) - self.threads or now > deadline:
                break
            self.others.pop()
            time.sleep(1)
        self.seconds.append(answer["seconds"])
        self.cpu.append(answer["cpu"])

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")


def busy_seconds() -> float:
    """That all cores together have worked since the machine started."""
    times = Path("/proc/stat").read_text(encoding="ascii").split()[1:8]
    user, nice, system, _, _, *interrupts = (int(ticks) for ticks in times)
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


class Clock:
    """The time, and beside it the CPU time of the process when it was asked for: at both ends of what is timed."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self) -> float:
        self.seen.append(self.cpu())
        return time.perf_counter()

    def cpu(self) -> float:
        return time.process_time()


def work(args: argparse.Namespace) -> None:
    """In a process of its own: build, take the first steps, and then turns for as long as they are asked for."""
    import lmxexp  # noqa: F401  (the BLAS, before MLX)
    from lmxexp import blas, on_cpu
    from lmxexp.bench import peers
    from lmxexp.bench.cases import cases_of
    from lmxexp.bench.own import OwnStep

    trainer, _, _, n_steps = CONTESTANTS[args.worker]
    if trainer == "lmxexp":
        on_cpu.prepare()
    (case,) = cases_of(["model=llama"], size=[args.size], batch_size=args.batch_size, seq_len=args.seq_len)
    contestant: Any = OwnStep(case.cfg, case.vocab_size)
    if trainer != "lmxexp":
        task = peers.task_of(case.cfg, contestant, peers.N_AGREEING_STEPS + args.rounds * n_steps)
        contestant = next(iter(peers.makers(trainer).values()))(task)
        peers.check_same_model(contestant, task)
    losses = contestant.turn(1, time.perf_counter).losses
    losses += contestant.turn(peers.N_AGREEING_STEPS - 1, time.perf_counter).losses
    about = {"losses": losses[: peers.N_AGREEING_STEPS], "blas": blas.which().kind, "note": contestant.note}
    print(json.dumps({**about, "parameters": contestant.n_params()}), flush=True)
    for _ in sys.stdin:
        clock = Clock()
        begun = clock.cpu()
        seconds = contestant.turn(n_steps, clock).seconds / n_steps
        of_step, busy = (clock.seen[-1] - clock.seen[0]) / n_steps, clock.cpu() - begun
        print(json.dumps({"seconds": seconds, "cpu": of_step, "busy": busy}), flush=True)


def _times(own: list[float], others: list[float]) -> str:
    """How many times as fast as another, round by round."""
    ratios = [other / mine for mine, other in zip(own, others, strict=True)]
    return f"{statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    args = parser.parse_args()
    if args.worker:
        work(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    workers = []
    for name in args.only or CONTESTANTS:
        try:
            workers.append(Worker(name, args))
            print(name, workers[-1].about, file=sys.stderr, flush=True)
        except RuntimeError as error:
            print(error, file=sys.stderr, flush=True)
    for worker in workers[1:]:
        for found, expected in zip(worker.about["losses"], workers[0].about["losses"], strict=True):
            assert abs(found - expected) < 2e-3, f"{worker.name} does not train as {workers[0].name} does"
    for i in range(args.rounds):
        for worker in [*workers[i % len(workers) :], *workers[: i % len(workers)]]:
            worker.turn(args.quiet)
    n_tokens = args.batch_size * args.seq_len
    print(f"{workers[0].about['parameters']:,} parameters, {args.batch_size} x {args.seq_len} tokens a step\n")
    print("| trainer | BLAS | threads | ms a step | tokens/s | CPU ms a step | lmxexp's tokens/s | by CPU time |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for worker in workers:
        step, cpu = statistics.median(worker.seconds), statistics.median(worker.cpu)
        blas = "its own" if worker.trainer == "torch" else worker.about["blas"]
        cells = [
            worker.name,
            blas,
            worker.threads,
            f"{1e3 * step:,.0f}",
            f"{n_tokens / step:,.0f}",
            f"{1e3 * cpu:,.0f}",
        ]
        own = next((w for w in workers if w.trainer == "lmxexp" and w.threads == worker.threads), worker)
        cells += [_times(own.seconds, worker.seconds), _times(own.cpu, worker.cpu)]
        print(f"| {' | '.join(map(str, cells))} |")
    others = [share for worker in workers for share in worker.others]
    print(f"\nThe rest of the machine took {statistics.median(others):.2f} cores meanwhile, {max(others):.2f} at most.")
    for worker in workers:
        if worker.about["note"]:
            print(f"\n{worker.name}: {worker.about['note']}")
        worker.end()


if __name__ == "__main__":
    main()
