"""Models of several parameters mapped in one go, against each by itself: every mixer, every feed-forward, presets."""

from typing import cast

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_map

from lmxexp.interfaces import Batch
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.model.language_model import LanguageModel
from lmxexp.ops.fused import mapped
from lmxexp.train.random_state import STATE
from tests.contracts.small_models import choice, kinds, relative_error, small_model, tokens
from tests.population.close import on_a_gpu, rounding

SIZES = ["model.d_model=16", "model.n_heads=4", "model.n_kv_heads=2", "model.d_ff=24", "model.dropout=0.1"]
N, LENGTH = 3, 12
# What a kind of mixer or feed-forward in a llama does not bring: biases, other norms and positions, hybrids.
PRESETS = ["gpt", "gemma2", "gpt_neox", "deepseek_v3", "falcon_h1", "kimi_linear", "llama4", "mamba"]
MODELS = [choice(group, kind) for group in ("attention", "ffn") for kind in kinds(group)]


class Members:
    """``N`` models of one configuration, of different parameters, batches and random keys."""

    def __init__(self, *overrides: str):
        models = [small_model(*SIZES, *overrides, seed=seed) for seed in range(N)]
        self.model = cast(LanguageModel, models[0].train())
        self.parameters = [model.parameters() for model in models]
        self.tokens = mx.stack([tokens(2, LENGTH + 1, seed) for seed in range(N)])
        self.keys = mx.stack([mx.random.key(seed) for seed in range(N)])
        self.loss = CrossEntropy()

    def loss_of_one(self, parameters, tokens, key):
        # MLX hands its own array out and lets it be written into, but not be replaced. A slice is another array.
        before = STATE[0][:]
        STATE[0][:] = key
        try:
            self.model.update(parameters)
            return self.loss(self.model, Batch(inputs=tokens[:, :-1], targets=tokens[:, 1:]))
        finally:
            STATE[0][:] = before

    def losses(self, parameters, tokens, keys):
        with mapped():
            losses, aux = mx.vmap(self.loss_of_one)(parameters, tokens, keys)
        return losses.sum(), (losses, aux)

    def together(self, keys=None, losses=None):
        """Losses ``(N,)``, auxiliary values and gradients, all with the members in front."""
        stacked = tree_map(lambda *leaves: mx.stack(list(leaves)), *self.parameters)
        keys = self.keys if keys is None else keys
        (_, (each, aux)), gradients = mx.value_and_grad(losses or self.losses)(stacked, self.tokens, keys)
        return each, aux, gradients

    def alone(self, i):
        (loss, aux), gradient = mx.value_and_grad(self.loss_of_one)(self.parameters[i], self.tokens[i], self.keys[i])
        return loss, aux, gradient


ILL_CONDITIONED = "attention=mamba1_normed"
"""Norms of a few small numbers: to change every parameter by a rounding error moves gradients by 2e-4."""


def assert_same(members, together, on_gpu=1e-4):
    for i in range(N):
        loss, *trees = members.alone(i)
        assert relative_error(together[0][i], loss) < rounding(1e-6, 1e-5)
        for tree, stacked in zip(trees, together[1:], strict=True):
            stacked, tree = dict(tree_flatten(stacked)), dict(tree_flatten(tree))
            # Some gradients are nothing but what is left of terms that cancel, of which a GPU leaves something else.
            floor = 1e-6 * max(mx.abs(a).max().item() for a in tree.values()) if on_a_gpu() else 0.0
            for name, want in tree.items():
                # Not divided by the largest: some gradients are nothing at all.
                tolerance = rounding(1e-5, on_gpu) * mx.abs(want).max() + floor
                assert mx.all(mx.abs(stacked[name][i] - want) <= tolerance).item(), name


@pytest.mark.parametrize("overrides", MODELS + [f"model={preset}" for preset in PRESETS])
def test_members_are_what_each_is_alone(overrides):
    members = Members(overrides)
    assert_same(members, members.together(), on_gpu=1e-3 if overrides == ILL_CONDITIONED else 1e-4)


def test_compiled():
    members = Members("attention=gqa", "ffn=moe")
    assert_same(members, mx.compile(members.together)())


def test_each_drops_by_its_own_key():
    members = Members("attention=mha")
    losses = members.together()[0]
    other = mx.stack([members.keys[0], mx.random.key(7), members.keys[2]])
    differs = mx.abs(members.together(keys=other)[0] - losses) > 1e-4
    assert differs.tolist() == [False, True, False]


def test_the_random_state_is_put_back():
    members = Members("attention=mha")
    before = STATE[0].tolist()
    members.together()
    assert STATE[0].tolist() == before
