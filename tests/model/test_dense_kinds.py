"""Kinds that another kind with other numbers is: against the reference, or against that kind with its knobs set."""

import math

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.contracts.small_models import small_config, small_model, tokens
from tests.reference.transformer import Transformer

# What a kind is, in the knobs of the kind that it starts from.
SAME = {
    "position=rope_500k": "position=rope model.position.attention.theta=500000.0",
    "position=rope_1m": "position=rope model.position.attention.theta=1000000.0",
    "softcap@model.logit_softcap=tanh_15": "softcap@model.logit_softcap=tanh model.logit_softcap.cap=15.0",
    "softcap@model.score_softcap=tanh_50": "softcap@model.score_softcap=tanh model.score_softcap.cap=50.0",
}
REFERENCE = {
    "ffn=geglu_tanh": {"activation": "gelu_tanh"},
    "norm=rmsnorm_small_eps": {"norm_eps": 1e-6},
    "model.attention.scale=0.9": {"scale": 0.9},
    "embedding=tied_scaled": {},
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_numbers(kind):
    x = tokens()
    got, want = small_model(kind)(x), small_model(*SAME[kind].split())(x)
    assert mx.array_equal(got, want).item()
    assert not mx.array_equal(got, small_model()(x)).item()


@pytest.mark.parametrize("kind", REFERENCE)
def test_reference(kind):
    # A small stream shows an eps.
    model, cfg, settings = small_model(kind), small_config(kind).model, dict(REFERENCE[kind])
    model.embedding.embed_tokens.weight = model.embedding.embed_tokens.weight * 0.02
    params = {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(model.parameters())}
    if kind == "embedding=tied_scaled":
        params["embedding.lm_head.weight"] = params["embedding.embed_tokens.weight"]
        params["embedding.embed_tokens.weight"] = math.sqrt(cfg.d_model) * params["embedding.embed_tokens.weight"]
    if scale := settings.pop("scale", None):  # the reference's is 1 / sqrt(head_dim)
        for i in range(cfg.n_layers):
            params[f"layers.{i}.self_attn.q_proj.weight"] *= scale * math.sqrt(cfg.d_model // cfg.n_heads)
    reference = Transformer(params, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads, **settings)
    x = tokens(2)
    want = np.stack([reference(row) for row in np.array(x)])
    assert np.abs(np.array(model(x)) - want).max() / np.abs(want).max() < 2e-5


def test_the_scale_is_of_the_input_alone():
    plain, scaled = small_model("embedding=tied"), small_model("embedding=tied_scaled")
    x, h = tokens(), mx.random.normal((2, 3, 32))
    assert mx.array_equal(plain.logits(h), scaled.logits(h)).item()
    assert mx.allclose(math.sqrt(32) * plain.embedding.embed(x), scaled.embedding.embed(x)).item()
    scaled.set_dtype(mx.bfloat16)
    assert scaled.embedding.embed(x).dtype == mx.bfloat16
