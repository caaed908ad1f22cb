"""State-space mixers against float64 NumPy, and what holds for them alone."""

from functools import partial
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from tests.contracts.small_models import LENGTH, relative_error, small_config, small_model, tokens
from tests.reference import state_space as reference

CASES = {
    "attention=mamba2": {"mixer": reference.mamba2},
    "attention=mamba2 attention.expand=3 attention.d_state=7 attention.conv_width=2": {"mixer": reference.mamba2},
    "attention=mamba2 model.bias=true attention.conv_bias=false attention.norm.eps=0.1": {
        "mixer": partial(reference.mamba2, eps=0.1)
    },
    "attention=mamba2 attention.dt_limit=[0.9,1.4]": {"mixer": partial(reference.mamba2, dt_limit=(0.9, 1.4))},
    "attention=mamba2_grouped": {"mixer": partial(reference.mamba2, n_groups=2)},
    "attention=mamba2_unnormed": {"mixer": partial(reference.mamba2, normed=False)},
    "attention=mamba1": {"mixer": reference.mamba1},
    "attention=mamba1 model.bias=true attention.conv_bias=false attention.dt_rank=5": {"mixer": reference.mamba1},
    "attention=mamba1_normed": {"mixer": partial(reference.mamba1, normed=True)},
    "attention=mamba1_normed attention.norm.eps=0.1": {"mixer": partial(reference.mamba1, normed=True, eps=0.1)},
    "attention=short_conv": {"mixer": reference.short_conv},
    "attention=short_conv attention.conv_width=5 model.bias=true": {"mixer": reference.short_conv},
    "attention=hybrid_head": {"mixer": reference.mamba2, "beside": True},
    "attention=hybrid_head attention@model.attention.second=mamba1": {"mixer": reference.mamba1, "beside": True},
}


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    overrides = case.split()
    model = small_model(*overrides)
    cfg = small_config(*overrides).model
    params = {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(model.parameters())}
    model_in_numpy = reference.StateSpaceModel(
        params, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads, **CASES[case]
    )
    x = tokens(2)
    want = np.stack([model_in_numpy(row) for row in np.array(x)])
    got = np.array(model(x))
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5


MIXERS = ["mamba2", "mamba2_grouped", "mamba2_unnormed", "mamba1", "mamba1_normed", "short_conv"]


@pytest.mark.parametrize("kind", MIXERS)
def test_a_document_starts_from_nothing(kind):
    """In a packed row a document's outputs are those that it has alone, wherever it starts; an id that comes back is
    another document."""
    mixer = small_model(f"attention={kind}").mixers()[0]
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(5))
    borders = [0, 4, 5, 13, 22, LENGTH]
    ids = [7, 3, 7, 8, 3]
    documents = list(zip(ids, pairwise(borders), strict=True))
    row = [i for i, (a, b) in documents for _ in range(a, b)]
    packed = mixer(x, segment_ids=mx.array([row, row]))
    alone = mx.concatenate([mixer(x[:, a:b]) for _, (a, b) in documents], axis=1)
    assert relative_error(packed, alone) < 1e-5
    with pytest.raises(NotImplementedError):
        mixer(x, cache=mixer.make_cache(), segment_ids=mx.zeros((2, LENGTH), mx.int32))


@pytest.mark.parametrize("kind", MIXERS)
def test_cost_does_not_grow_with_length(kind):
    mixer = small_model(f"attention={kind}").mixers()[0]
    assert mixer.state_size(7) == mixer.state_size(7000)
    assert mixer.mixing_flops(16000) < 1.1 * mixer.mixing_flops(1600)


def test_recurrences_start_as_published():
    from lmxexp.model.attention.mamba1 import Mamba1
    from lmxexp.model.attention.mamba2 import Mamba2

    for mixer, heads in ((Mamba2(d_model=16, n_heads=8), 8), (Mamba1(d_model=16), 32)):
        steps = np.log1p(np.exp(np.array(mixer.dt_bias, dtype=np.float64)))
        np.testing.assert_allclose(steps, np.geomspace(0.001, 0.1, heads), rtol=1e-4)
        np.testing.assert_array_equal(mixer.D, 1.0)
    np.testing.assert_allclose(np.exp(Mamba2(d_model=16, n_heads=4).A_log), [1, 6, 11, 16], rtol=1e-6)
    np.testing.assert_allclose(np.exp(Mamba1(d_model=16).A_log), np.tile(np.arange(1, 17), (32, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attention=mamba2", "model.n_heads=3"], "attention.n_heads=3"),
        (["attention=mamba2", "attention.n_groups=3"], "attention.n_groups=3"),
        (["attention=mamba2", "attention.dt_limit=[0.1,0.1]"], "attention.dt_limit=.0.1, 0.1."),
        (["attention=mamba1", "attention.dt_rank=0"], "attention.dt_rank=0"),
        (["attention=short_conv", "attention.conv_width=1"], "attention.conv_width=1"),
        (["attention=hybrid_head", "attention@model.attention.second=none"], "attention.second is none"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        small_model(*overrides)


def test_experts_of_jamba():
    """``ffn=moe_jamba``: as wide as a dense layer, weighted by probabilities that do not sum to one."""
    from tests.reference.experts import mixture

    layer = small_model("ffn=moe_jamba", "model.n_layers=1").layers[0].mlp
    assert layer.d_expert == 48
    x = mx.random.normal((11, 32), key=mx.random.key(2))
    params = {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(layer.parameters())}
    want, *_ = mixture(np.array(x, dtype=np.float64), params, top_k=2, normalise=False)
    assert np.abs(np.array(layer(x[None])[0][0]) - want).max() < 2e-5 * np.abs(want).max()
