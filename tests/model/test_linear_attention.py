"""The mixers of linear attention against float64 loops over tokens."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from tests.contracts.small_models import LENGTH, small_model
from tests.reference import recurrent

FEATURES = {
    "elu": lambda x: np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))),
    "relu": lambda x: np.maximum(x, 0),
}


def check(function, overrides, **settings):
    mixer = small_model(*overrides.split()).mixers()[0]
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))
    want = np.stack([function(p, row, n_heads=4, **settings) for row in np.array(x, dtype=np.float64)])
    assert np.abs(np.array(mixer(x)) - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("more", ["", "model.bias=true attention.expand_v=2"])
def test_linear(features, more):
    check(
        recurrent.linear_attention,
        f"attention=linear attention.feature_map={features} {more}",
        features=FEATURES[features],
    )


@pytest.mark.parametrize(("more", "shortest"), [("", 5.0), ("attention.decay.shortest=1 attention.expand_v=1", 1.0)])
def test_retention(more, shortest):
    check(recurrent.retention, f"attention=retention {more}", shortest=shortest)


@pytest.mark.parametrize(
    ("more", "temperature"), [("", 16.0), ("attention.decay.temperature=2 attention.expand_k=1", 2.0)]
)
def test_gla(more, temperature):
    check(recurrent.gated_linear_attention, f"attention=gla {more}", temperature=temperature)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("attention=retention position=alibi", "position=alibi adds to the scores of a softmax"),
        ("attention=linear attention.feature_map=identity", "take feature_map=elu"),
        ("attention=gla attention.expand_k=0.3", "expand_k=0.3 times a head_dim of 8 is no whole number"),
    ],
)
def test_what_cannot_be_is_refused(overrides, message):
    with pytest.raises(Exception) as refusal:
        small_model(*overrides.split())
    assert message in str(refusal.value)
    assert isinstance(refusal.value.__cause__ or refusal.value, ConfigError)
