"""A small model, optimizer and source for tests of the training loop."""

from functools import partial

import mlx.core as mx
import mlx.optimizers
import numpy as np

from lmxexp.data.sampling import rank_rows
from lmxexp.interfaces import Batch
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.optim.build import build_optimizer
from lmxexp.train.step import TrainStep
from tests.contracts.small_models import VOCAB, small_model


class RandomTokens:
    """A source of random tokens; the same batch for the same index."""

    vocab_size = VOCAB
    tokenizer = None
    fingerprint = "random"
    eval_bytes = 3 * 40

    def __init__(self, batch_size=8, length=16, weights=False):
        self.record = {}
        self.batch_size, self.length, self.weights = batch_size, length, weights

    def batch(self, index, *, rank=0, world=1):
        rng = np.random.default_rng(index)
        ids = rng.integers(0, VOCAB, (self.batch_size, self.length + 1)).astype(np.int32)
        weights = rng.integers(0, 2, (self.batch_size, self.length)).astype(np.float32) if self.weights else None
        own = rank_rows(self.batch_size, rank, world)
        return Batch(ids[own, :-1], ids[own, 1:], None if weights is None else weights[own])

    def eval_batches(self):
        """40 targets; the last batch is half padding."""
        for i, n in enumerate((32, 8)):
            ids = np.random.default_rng(1000 + i).integers(0, VOCAB, (2, 17)).astype(np.int32)
            weights = (np.arange(32) < n).astype(np.float32).reshape(2, 16)
            yield Batch(ids[:, :-1], ids[:, 1:], weights)


def make_step(*overrides, optimizer=None, dtype=None, **settings):
    """A `TrainStep` over a small model; ``model``, ``optimizer`` and the rest are its attributes."""
    model = small_model(*overrides)
    if dtype is not None:
        model.set_dtype(dtype)
    factory = optimizer or partial(mlx.optimizers.AdamW, learning_rate=1e-2, bias_correction=True)
    opt = build_optimizer(factory, lambda step: mx.minimum((step + 1) / 4, 1.0).astype(mx.float32))
    model.train()
    opt.init(model.trainable_parameters())
    mx.random.seed(5)
    return TrainStep(model, opt, CrossEntropy(), **settings)
