"""``python -m tests.parallel.ranks DIR [until=N] CASE…``: runs in the processes that `mlx.launch` starts, as far as
step N. A run that is in ``DIR/CASE`` already goes on."""

import sys
from pathlib import Path

import lmxexp  # first: it has MLX find a fast BLAS

# isort: split
import mlx.core as mx

from lmxexp.parallel.launch import launched
from tests.parallel.cases import overrides


def sum_scatter(x, *, group, stream=None):
    """What the ring backend lacks, by what it has."""
    n = x.shape[0] // group.size()
    return mx.distributed.all_sum(x, group=group)[group.rank() * n : (group.rank() + 1) * n]


if __name__ == "__main__":
    mx.distributed.sum_scatter = sum_scatter
    directory, names, until = Path(sys.argv[1]), sys.argv[2:], None
    if names[0].startswith("until="):
        until = int(names.pop(0).partition("=")[2])
    for name in names:
        cfg = None  # rank 0 tells the others
        if launched().rank == 0:
            cfg = lmxexp.compose(overrides(name, directory, 2))
            if (directory / name).exists():
                cfg.resume = str(directory / name)
        lmxexp.run(cfg, directory / name, until=until)
