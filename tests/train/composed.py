"""A training step as a configuration has it."""

import mlx.core as mx

import lmxexp
from lmxexp.build import build
from lmxexp.model.build import build_model
from lmxexp.optim.build import optimizer_of
from lmxexp.train.step import TrainStep


def composed_step(*overrides, vocab_size, seed=0, remat="none", **settings):
    """A `TrainStep` of the composed model, loss and optimizer; ``settings`` are its own."""
    cfg = lmxexp.compose([*overrides])
    mx.random.seed(seed)
    model = build_model(cfg, vocab_size=vocab_size)
    model.train()
    model.remat = remat
    optimizer = optimizer_of(cfg)
    optimizer.init(model.trainable_parameters())
    return TrainStep(model, optimizer, build(cfg.loss), **settings)
