"""Sweeps of points that train for half a second, as real processes."""

import csv
import json
import subprocess
from pathlib import Path

from tests.end_to_end.processes import lmxexp
from tests.pythonpath import PYTHONPATH

TINY = [
    "data=mqar",
    "data.vocab_size=32",
    "data.n_pairs=2",
    "data.n_eval=64",
    "train.seq_len=16",
    "train.batch_size=4",
    "train.steps=9",
    "train.log_every=3",
    "train.eval_every=3",
    "train.checkpoint_every=3",
    "model.d_model=32",
    "model.n_layers=1",
    "logger=[jsonl]",
    "callback=[evaluate,checkpoint,throughput,memory]",
]

KINDS = '''
import os
import signal
from pathlib import Path

from lmxexp.model.attention.gqa import GroupedQueryAttention


class KilledOnce(GroupedQueryAttention):
    """Does once, in whichever process comes first, what the system does to one that takes too much memory."""

    def __call__(self, x, **kwargs):
        if x.shape[0] > 1:
            try:
                Path(__file__).with_name("killed").touch(exist_ok=False)
            except FileExistsError:
                return super().__call__(x, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(x, **kwargs)


class Raises(GroupedQueryAttention):
    def __call__(self, x, **kwargs):
        raise RuntimeError("no such luck")
'''


def with_kinds(place: Path) -> Path:
    """Add ``attention=killed_once`` and ``attention=raises``, which ``--config-dir my`` brings."""
    (place / "my_kinds.py").write_text(KINDS)
    folder = place / "my" / "model" / "attention"
    folder.mkdir(parents=True)
    for name, kind in {"killed_once": "KilledOnce", "raises": "Raises"}.items():
        (folder / f"{name}.yaml").write_text(f"# Mine.\ndefaults: [gqa, _self_]\n_target_: my_kinds.{kind}\n")
    return place


def sweep(place: Path, *overrides: str, name: str = "s") -> subprocess.CompletedProcess:
    """``lmxexp -m … sweep=NAME``; its processes find their home and their files in ``place``."""
    mine = ["--config-dir", "my"] if (place / "my").is_dir() else []
    env = {"OPENBLAS_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": PYTHONPATH, "HOME": str(place)}
    return lmxexp("-m", *mine, *TINY, *overrides, f"sweep={name}", cwd=place, timeout=240, **env)


def table(place: Path, name: str = "s") -> bytes:
    """``points.csv``, which has nothing in it that a clock says."""
    return (place / "outputs" / "sweeps" / name / "points.csv").read_bytes()


def points(place: Path, name: str = "s") -> list[dict[str, str]]:
    return list(csv.DictReader(table(place, name).decode().splitlines()))


def begun(place: Path, name: str = "s") -> dict[str, int]:
    """How often each point began."""
    files = sorted((place / "outputs" / "sweeps" / name).glob("*/outcome.json"))
    return {file.parent.name: json.loads(file.read_text())["attempt"] for file in files}
