"""A case that takes milliseconds."""

from lmxexp.bench.cases import cases_of

SIZES = ["model.d_model=32", "model.n_layers=2", "model.n_heads=4"]


def small(*overrides, **options):
    return cases_of([*SIZES, *overrides], **{"vocab_size": 64, "batch_size": 2, "seq_len": 16, **options})
