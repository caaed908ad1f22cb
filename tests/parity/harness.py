"""A model of ours against another library's, built from our exported directory.

Every weight is random, norms and biases too: ones and zeros hide mistakes.
"""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from hydra.utils import instantiate

from lmxexp.export import export
from lmxexp.export.write import family_names, load_family
from lmxexp.interfaces import Batch
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.ops.trees import by_path
from tests.contracts.small_models import VOCAB, randomise, small_config

# Three shapes each: other widths, head counts, depths; all in sequences longer than any window and chunk (5).
SHAPES = {
    "small": ["model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.d_ff=48"],
    "odd heads": ["model.d_model=48", "model.n_heads=6", "model.n_kv_heads=3", "model.d_ff=40", "model.head_dim=16"],
    "one head for all": ["model.d_model=64", "model.n_heads=4", "model.n_kv_heads=1", "model.d_ff=96"],
}
BATCH, LENGTH = 3, 29
# What a family cannot do otherwise.
ADJUSTED = {
    "falcon": ["model.head_dim=null"],
    "gpt": ["model.head_dim=null", f"model.position.embedding.max_len={LENGTH}"],
    "gpt_neox": ["model.head_dim=null"],
    "phi3": ["model.head_dim=null"],
}

# Designs that a family has beside its preset's.
VARIANTS = {
    "gemma": ["attention=gqa model.head_dim=16", "position=rope_linear"],
    "gemma2": [
        "attention@model.local=gqa",
        "model.attention.scale=0.25 model.local.scale=0.25",
        "softcap@model.logit_softcap=none softcap@model.score_softcap=none",
        "model.n_layers=3 model.local.reach.window=7",
    ],
    "gemma3": [
        "model.net.pattern.repeat=[local,layer]",
        "position=rope_linear position@model.local_position=rope_500k",
        "model.attention.scale=0.5 model.local.scale=0.5",
    ],
    "gpt": ["model.ffn.activation=gelu_tanh", "embedding=untied", "model.d_ff=null"],
    "llama": [
        "model.bias=true",
        "model.ffn.bias=true",
        "embedding=untied",
        "model.position.attention.theta=5000.0",
        "position=rope_linear",
        "position=rope_llama3",
        "position=rope_yarn",
        "position=rope_yarn model.position.attention.scaling.attention_factor=0.9",
    ],
    "mistral": ["attention=gqa", "embedding=tied", "model.attention.reach.window=9"],
    "nanochat": ["attention=gqa", "model.bias=true model.ffn.bias=false", "softcap@model.logit_softcap=none"],
    "olmo2": ["model.bias=true model.ffn.bias=false", "embedding=tied"],
    "qwen2": ["attention=sliding", "embedding=untied"],
    "qwen3": ["attention=sliding", "model.bias=true model.ffn.bias=false model.head_dim=16"],
}
FAMILIES = family_names()
DESIGNS = [(name, "") for name in FAMILIES] + [(name, v) for name in FAMILIES for v in VARIANTS.get(name, [])]
DESIGN_IDS = [" ".join(design).strip() for design in DESIGNS]


def preset_in(shape, family_name):
    """Overrides of a family's preset in a shape."""
    return [f"model={family_name}", *SHAPES[shape], *ADJUSTED.get(family_name, [])]


def make(overrides, seed=0, vocab_size=VOCAB):
    """A random model and its configuration."""
    cfg = small_config(*overrides)
    mx.random.seed(seed)
    model = instantiate(cfg.model.net, _convert_="all")(vocab_size=vocab_size)
    randomise(model, seed)
    return model, cfg


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
