"""Runs of several arms and seeds by their losses alone."""

from tests.compare.made_runs import made_config, memory_run

ARMS = ("mha", "gqa", "mqa", "sliding")
CONFIGS = {(kind, seed): made_config({"attention": kind}, seed=seed) for kind in ARMS for seed in range(10)}


def runs_of(losses, first_seed=0, **others):
    """``{"mha": [3.0, 3.1]}``: one run a seed; further arms may be called ``mha:label`` with another learning rate."""
    return [
        memory_run(config=CONFIGS[kind, first_seed + i], loss=loss, **others)
        for kind, of_kind in losses.items()
        for i, loss in enumerate(of_kind)
    ]


def row_of(comparison, label):
    return next(row for row in comparison.rows if row.arm.label == label)
