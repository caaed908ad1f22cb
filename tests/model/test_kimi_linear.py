"""What Kimi Linear's preset has that no other test computes by another way."""

import mlx.core as mx
import numpy as np
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.model.attention.delta import DeltaNet
from lmxexp.model.attention.mla import MultiHeadLatentAttention
from lmxexp.model.ffn.moe import MixtureOfExperts
from tests.contracts.small_models import randomise, small_config, small_model
from tests.reference.experts import mixture


def test_its_mixture():
    layer = instantiate(small_config("ffn=moe_kimi_linear").model.ffn, _convert_="all")(d_model=32)
    randomise(layer)
    x = mx.random.normal((2, 11, 32), key=mx.random.key(1))
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(layer.parameters())}
    want, *_ = mixture(
        np.array(x, dtype=np.float64).reshape(-1, 32), p, top_k=4, score="sigmoid", scale=2.446, shared=True
    )
    got = np.array(layer(x)[0]).reshape(-1, 32)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


def test_every_fourth_layer_is_latent_attention_and_the_first_is_dense():
    model = small_model("model=kimi_linear", "model.n_layers=9")
    kinds = [type(layer.self_attn) for layer in model.layers]
    assert kinds == 2 * [DeltaNet, DeltaNet, DeltaNet, MultiHeadLatentAttention] + [DeltaNet]
    assert [type(layer.mlp) is MixtureOfExperts for layer in model.layers] == [False] + 8 * [True]
    assert all(m.position is None for m in model.mixers() if isinstance(m, MultiHeadLatentAttention))
