"""The mixers of the delta rule against float64 loops over tokens."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from tests.contracts.small_models import LENGTH, relative_error, small_model
from tests.reference import recurrent


def random_mixer(*overrides, seed=0):
    """A mixer that forgets slowly enough for what is far away to count."""
    mixer = small_model(*overrides, seed=seed).mixers()[0]
    for path, p in tree_flatten(mixer.parameters()):
        if path.endswith("dt_bias"):
            place = mixer if path == "dt_bias" else mixer.decay
            place.dt_bias = p - 4.0
    return mixer


def reference(function, mixer, x, **settings):
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    return np.stack([function(p, row, **settings) for row in np.array(x, dtype=np.float64)])


def check(function, mixer, **settings):
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))
    want = reference(function, mixer, x, **settings)
    assert np.abs(np.array(mixer(x)) - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.parametrize("overrides", ["", "model.bias=true", "model.head_dim=12 attention.conv_width=2"])
@pytest.mark.parametrize("kind", ["attention=delta", "attention=kda"])
def test_delta_net(kind, overrides):
    check(recurrent.delta_net, random_mixer(kind, *overrides.split()), n_heads=4)


@pytest.mark.parametrize(
    ("overrides", "n_key_heads", "C", "M"),
    [
        ("", 2, 8, 8),
        ("model.n_kv_heads=4 attention.expand_v=2", 4, 8, 16),
        ("model.n_kv_heads=1 attention.expand_v=0.5 model.head_dim=12", 1, 12, 6),
    ],
)
def test_gated_deltanet(overrides, n_key_heads, C, M):
    mixer = random_mixer("attention=gated_deltanet", *overrides.split())
    check(recurrent.gated_deltanet, mixer, n_heads=4, n_key_heads=n_key_heads, C=C, M=M)


@pytest.mark.parametrize("kind", ["delta", "kda", "gated_deltanet"])
def test_slow_forgetting_survives_decoding_and_documents(kind):
    """The contract's promises where the state at the end still holds the beginning."""
    mixer = random_mixer(f"attention={kind}")
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))
    want, cache = mixer(x), mixer.make_cache()
    for split in ((1,) * LENGTH, (2, 9, 13)):
        cache, got, start = mixer.make_cache(), [], 0
        for n in split:
            got.append(mixer(x[:, start : start + n], cache=cache))
            start += n
        assert relative_error(mx.concatenate(got, axis=1), want) < 1e-5
    ids = mx.array([[0] * 9 + [1] * (LENGTH - 9)] * 2)
    assert relative_error(mixer(x, segment_ids=ids)[:, 9:], mixer(x[:, 9:])) < 1e-5
    assert relative_error(want[:, 9:], mixer(x[:, 9:])) > 1e-2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("attention=gated_deltanet model.n_kv_heads=3", "n_heads=4 must be a multiple of model.n_kv_heads=3"),
        ("attention=gated_deltanet attention.expand_v=0.3", "expand_v=0.3 times a head_dim of 8 is no whole number"),
        ("attention=delta model.n_heads=3", "d_model=32 must be a multiple of model.n_heads=3"),
        ("attention=delta attention.conv_width=0", "conv_width=0 must be at least 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(Exception) as refusal:
        small_model(*overrides.split())
    assert message in str(refusal.value)
    assert isinstance(refusal.value.__cause__ or refusal.value, ConfigError)
