"""Models of every kind against a float64 NumPy transformer."""

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.contracts.small_models import LENGTH, kinds, small_config, small_model, tokens
from tests.reference.transformer import Transformer

CASES = {
    "model=llama": {},
    "attention=mha": {},
    "attention=mqa": {},
    "attention=sliding": {},
    "attention=chunked": {"chunk": 5},
    "attention=gated": {},
    "attention=gated model.bias=true norm=layernorm": {},
    "attention=sink": {},
    "attention=sliding_sink": {},
    "position=alibi attention=chunked": {"position": "alibi", "chunk": 5},
    "position=alibi attention=sink": {"position": "alibi"},
    "value_residual=learned": {},
    "value_residual=learned attention=chunked model.qkv_bias=true": {"chunk": 5},
    "norm@model.embedding_norm=rmsnorm": {},
    "norm=rmsnorm_unit_offset": {"norm_offset": 1.0, "norm_eps": 1e-6},
    "norm=rmsnorm_unscaled": {"unscaled": True, "norm_eps": 1e-6},
    "norm=dyt": {},
    "qk_norm=rmsnorm_all_heads": {},
    "qk_norm=rmsnorm_unit_offset": {"qk_norm_offset": 1.0},
    "qk_norm=rmsnorm_unscaled": {"unscaled_qk": True},
    "qk_norm=layernorm model.bias=true norm=layernorm": {},
    "ffn=relu2": {"activation": "relu2"},
    "norm=layernorm model.bias=true": {},
    "norm=none": {},
    "position=alibi": {"position": "alibi"},
    "position=alibi model.n_heads=3 model.n_kv_heads=3 model.head_dim=8": {"position": "alibi"},
    "position=alibi attention=sliding": {"position": "alibi"},
    "position=none": {"position": "none"},
    "position=sinusoidal": {"position": "sinusoidal"},
    "position=learned": {"position": "learned"},
    "ffn=geglu": {"activation": "gelu"},
    **{
        f"ffn=mlp ffn.activation={a}": {"activation": a} for a in ("gelu", "gelu_tanh", "relu", "relu2", "silu")
    },
    "block=post_norm": {"block": "post_norm"},
    "block=sandwich": {"block": "sandwich"},
    "block=parallel": {"block": "parallel"},
    "embedding=untied": {},
    "qk_norm=rmsnorm": {},
    "softcap@model.logit_softcap=tanh model.logit_softcap.cap=0.5": {"logit_cap": 0.5},
    "softcap@model.score_softcap=tanh model.score_softcap.cap=0.5": {"score_cap": 0.5},
    "model=gpt": {"position": "learned", "activation": "gelu"},
    "model=gpt model.n_heads=8 model.n_kv_heads=2 attention=gqa model.head_dim=16": {
        "position": "learned",
        "activation": "gelu",
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    overrides = case.split()
    model = small_model(*overrides)
    cfg = small_config(*overrides).model
    params = {name: np.array(p, dtype=np.float64) for name, p in tree_flatten(model.parameters())}
    reference = Transformer(
        params,
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        n_kv_heads=model.mixers()[0].n_kv_heads,
        window=cfg.attention.get("reach", {}).get("window"),
        **CASES[case],
    )
    x = tokens(2)
    want = np.stack([reference(row) for row in np.array(x)])
    got = np.array(model(x).astype(mx.float32))
    assert np.abs(got - want).max() / np.abs(want).max() < 2e-5


@pytest.mark.parametrize("group", ["attention", "position", "ffn", "block", "embedding", "norm", "qk_norm"])
def test_no_kind_is_forgotten(group):
    """A kind that no test beside this one computes by another way fails here."""
    tests = "".join(file.read_text() for file in Path(__file__).parent.glob("test_*.py"))
    named = tests + " attention=gqa position=rope ffn=swiglu block=pre_norm embedding=tied norm=rmsnorm"  # llama's own
    named += " attention=none ffn=none qk_norm=none"
    assert [k for k in kinds(group) if not re.search(rf"{group}={k}\b", named)] == []


def test_attention_dropout_keeps_the_mean():
    """Dropped attention weights are made up for by the others, and only in training."""
    from lmxexp.ops.attend import attend

    mx.random.seed(0)
    q, k, v = (mx.random.normal((1, 2, LENGTH, 8)) for _ in range(3))
    plain = attend(q, k, v, scale=0.3)
    draws = mx.stack([attend(q, k, v, scale=0.3, dropout=0.3) for _ in range(400)])
    assert mx.abs(draws.mean(axis=0) - plain).max().item() < 0.2
    assert mx.abs(draws[0] - plain).max().item() > 0.2
    model = small_model("model.dropout=0.3")
    model.eval()
    assert mx.array_equal(model(tokens()), model(tokens())).item()
    model.train()
    assert not mx.array_equal(model(tokens()), model(tokens())).item()


def test_one_module_in_two_places_is_refused(monkeypatch):
    """A component without ``_partial_`` would be one instance, tied over all layers."""
    import mlx.nn as nn

    from lmxexp import build_model, compose
    from lmxexp.interfaces import ConfigError
    from lmxexp.model.block.residual import ResidualBlock

    shared = nn.RMSNorm(128)
    init = ResidualBlock.__init__
    monkeypatch.setattr(ResidualBlock, "__init__", lambda self, **k: init(self, **{**k, "norm": lambda d: shared}))
    with pytest.raises(ConfigError, match="one module instance stands in two places"):
        build_model(compose([]), vocab_size=9)
