"""Runs that are to come to the same on any number of processes."""

from pathlib import Path

import numpy as np

from lmxexp.data.mqar import Mqar
from tests.end_to_end.processes import small

CASES = {
    # With dropout, clipping and two parts of a batch.
    "adamw": ["train.max_grad_norm=0.5"],
    "muon": ["optim=muon", "train.max_grad_norm=0.5", "train.n_micro=1"],
    "whole": ["train.n_micro=1", "train.steps=4"],
    "ragged": [
        "data=mqar",
        f"data._target_={__name__}.Ragged",
        "train.seq_len=32",
        "data.vocab_size=64",
        "train.compile=false",
    ],
    "ramp": ["ramp=batch_size", "ramp.start=4", "ramp.until=0.5", "train.batch_size=8", "train.n_micro=1"],
    "ema": ["callback=[evaluate,ema,sample,checkpoint]", "callback.ema.every=2"],
    "odd": ["optim=lion", "model.d_model=66", "model.n_heads=3", "tokenizer=char"],
    "experts": ["model=deepseek_v3", "model.dropout=0", "train.n_micro=1"],
}

ALONE = {"experts": ["train.n_micro=2"]}
"""What differs in one process: there is a load of the experts for each part of a batch and each process."""

SHARDED = ["adamw", "ragged", "ema", "odd", "experts"]


def overrides(name: str, directory: Path, n_processes: int) -> list[str]:
    """Of a case, or of ``sharded-CASE``."""
    case = name.removeprefix("sharded-")
    own = CASES[case] + (ALONE.get(case, []) if n_processes == 1 else [])
    common = [*small(directory), "model.n_layers=1"]
    if any(o.startswith("data=") for o in own):
        common = [o for o in common if not o.startswith("data.path=")]
    return [*common, *own, *(["train.parallel=fsdp"] if case != name and n_processes > 1 else [])]


class Ragged(Mqar):
    """Rows with other numbers of targets, the first ones with none."""

    def batch(self, index, *, rank=0, world=1):
        batch = super().batch(index)
        rows = np.arange(len(batch.inputs))
        batch.weights[:] *= np.random.default_rng(index).random(batch.weights.shape) < rows[:, None] / len(rows)
        n = len(rows) // world
        return type(batch)(*(None if a is None else a[rank * n : (rank + 1) * n] for a in batch))
