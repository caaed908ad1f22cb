"""A model of ours against another library's, built from our exported directory.

Every weight is random, norms and biases too: ones and zeros hide mistakes.
"""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from lmxexp.export import export
from lmxexp.export.write import load_family
from lmxexp.interfaces import Batch
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.ops.trees import by_path
from tests.contracts.small_models import VOCAB, small_config, small_model

# Three shapes each: other widths, head counts, depths; all in sequences longer than any window and chunk (5).
SHAPES = {
    "small": ["model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.d_ff=48"],
    "odd heads": ["model.d_model=48", "model.n_heads=6", "model.n_kv_heads=3", "model.d_ff=40", "model.head_dim=16"],
    "one head for all": ["model.d_model=64", "model.n_heads=4", "model.n_kv_heads=1", "model.d_ff=96"],
}
BATCH, LENGTH = 3, 29


def make(overrides, seed=0):
    """A random model and its configuration."""
    return small_model(*overrides, seed=seed), small_config(*overrides)


def random_tokens(seed=3):
    return np.random.default_rng(seed).integers(0, VOCAB, (BATCH, LENGTH))


def our_loss_and_gradients(model, tokens):
    """Plain next-token loss, without auxiliary losses, and its gradient by our names."""
    batch = Batch(mx.array(tokens[:, :-1]), mx.array(tokens[:, 1:]))
    loss = CrossEntropy()

    def plain(m):
        _, aux = loss(m, batch)
        return aux["nll"] / aux["n_targets"]

    value, gradient = nn.value_and_grad(model, plain)(model)
    return value.item(), by_path(gradient)


def export_to(model, cfg, directory):
    """Export; returns the family's module."""
    name = export(model, cfg, directory)
    assert name == cfg.choice.model, f"exported as {name}"
    json.loads((directory / "config.json").read_text())
    return load_family(name)


def relative_error(got, want):
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    return np.abs(got - want).max() / np.abs(want).max()


def check_gradients(family, model, ours, theirs_by_name, tolerance):
    """Each parameter's gradient against theirs, translated by the family's ties. Both sides must be complete."""
    biggest = max(float(mx.abs(g).max().item()) for g in ours.values())
    frozen = set(by_path(model.parameters())) - set(ours)
    compared = 0
    for tie in family.ties(model):
        if set(tie.ours) & frozen:
            continue
        theirs = [mx.array(theirs_by_name[name]) for name in tie.theirs]
        for name, want in zip(tie.ours, tie.to_ours(*theirs), strict=True):
            got = ours[name]
            assert got.shape == want.shape, (name, got.shape, want.shape)
            error = mx.abs(got - want).max().item()
            # The floor is for gradients that are zero but for rounding, such as that of a key's bias.
            assert error <= tolerance * mx.abs(want).max().item() + 1e-7 * biggest, f"{name}: {error}"
            compared += 1
    assert compared == len(ours)
