"""Both sublayers side by side, each behind its own norm (block=parallel_two_norms), against float64."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from tests.contracts.small_models import small_config, small_model, tokens
from tests.reference.transformer import Transformer


class TwoNorms(Transformer):
    def layer(self, x, n):
        attention = self.attention(self.norm(x, f"{n}.input_layernorm"), f"{n}.self_attn")
        ffn = self.ffn(self.norm(x, f"{n}.post_attention_layernorm"), f"{n}.mlp")
        return x + attention + ffn


@pytest.mark.parametrize("norm", [[], ["norm=layernorm", "model.bias=true"], ["norm=layernorm_biased"]], ids=str)
def test_logits(norm):
    overrides = ["block=parallel_two_norms", *norm]
    model, cfg = small_model(*overrides), small_config(*overrides).model
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(model.parameters())}
    reference = TwoNorms(p, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads)
    x = tokens(2)
    want = np.stack([reference(row) for row in np.array(x)])
    assert np.abs(np.array(model(x)) - want).max() / np.abs(want).max() < 2e-5


@pytest.mark.parametrize("without", ["attention", "ffn"])
def test_a_sublayer_may_be_absent(without):
    """Then its norm is, too."""
    model = small_model("block=parallel_two_norms", f"{without}=none")
    names = {path.split(".")[2] for path, _ in tree_flatten(model.layers[0].parameters(), "layers.0")}
    absent = {"attention": {"self_attn", "input_layernorm"}, "ffn": {"mlp", "post_attention_layernorm"}}
    assert not names & absent[without]
    assert mx.isfinite(model(tokens())).all().item()
