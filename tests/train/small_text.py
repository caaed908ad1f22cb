"""A run so small that tests can train many."""

import random

SMALL = ["data=text", "data.path=text.txt", "model.d_model=16", "model.n_heads=2", "model.n_kv_heads=1"]
SMALL += ["model.n_layers=1", "train.steps=8", "train.batch_size=8", "train.seq_len=16", "train.log_every=1"]
SMALL += ["train.checkpoint_every=2", "train.eval_every=4", "logger=[jsonl]", "callback=[evaluate,checkpoint]"]

AUTO = "train.n_micro=auto", "train.remat=auto"


def write_text(directory):
    """What it trains on, there."""
    (directory / "text.txt").write_text("".join(random.Random(0).choices("abcdefgh ", k=6000)))
