"""Small runs as real processes."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from lmxexp.logger.jsonl import read_metrics
from lmxexp.train import checkpoint

TEXT = "".join(f"{i} green bottles standing on the wall, and if one of them should fall: {i - 1}\n" for i in range(300))

SMALL = [
    "model.d_model=32",
    "model.n_layers=2",
    "model.n_heads=2",
    "model.n_kv_heads=1",
    "model.dropout=0.1",
    "data=text",
    "train.steps=12",
    "train.batch_size=4",
    "train.seq_len=16",
    "train.n_micro=2",
    "train.log_every=1",
    "train.eval_every=4",
    "train.checkpoint_every=4",
    "data.max_eval_tokens=256",
    "callback.sample.max_tokens=4",
    "logger=[jsonl]",
]


# A GPU's kernels are compiled when they are first used.
TIMEOUT = 120 if mx.default_device() == mx.cpu else 600


def small(directory: Path, *overrides: str) -> list[str]:
    """Overrides of a run that takes a second, on a text file in ``directory``."""
    text = directory / "bottles.txt"
    if not text.exists():
        text.write_text(TEXT)
    return [*SMALL, f"data.path={text}", *overrides]


def lmxexp(
    *args: str, cwd: Path, module: str = "lmxexp", timeout: float = TIMEOUT, **env: str
) -> subprocess.CompletedProcess:
    """``python -m lmxexp …`` with no terminal."""
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def deterministic(run_dir: Path) -> list[dict]:
    """The logged lines without what a clock or an allocator says."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("perf/", "mem/"))}
        for line in read_metrics(run_dir / "metrics.jsonl")
    ]


def assert_same_run(a: Path, b: Path) -> None:
    """Bit for bit the same weights, optimizer and random state, metrics and samples."""
    assert deterministic(a) == deterministic(b)
    saved = [checkpoint.read(checkpoint.newest(d / "checkpoints")) for d in (a, b)]
    same = [{k: v for k, v in s.state.items() if k != "run_id"} for s in saved]
    assert same[0] == same[1]
    for name in ("model", "optimizer"):
        left, right = (s.load(name) for s in saved)
        assert left.keys() == right.keys()
        for path, array in left.items():
            assert mx.array_equal(array, right[path], equal_nan=True).item(), f"{name}: {path}"
    # A run that was stopped early, among others, has come to no sample.
    samples = [path.read_text() if path.exists() else None for path in (a / "samples.txt", b / "samples.txt")]
    assert samples[0] == samples[1]
