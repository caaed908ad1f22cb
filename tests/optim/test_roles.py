"""Which parameters are decayed, and which are made orthogonal."""

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from lmxexp.optim.adamw import AdamW
from lmxexp.optim.muon import MuonWithAdamW
from lmxexp.optim.sgd import SGD

MATRICES = {
    "embedding.embed_tokens.weight": (11, 6),
    "layers.0.self_attn.q_proj.weight": (6, 6),
    "layers.0.mlp.experts.up_proj.weight": (3, 5, 6),
    "layers.0.conv1d.weight": (6, 3, 6),
}
OTHERS = {
    "layers.0.input_layernorm.weight": (6,),
    "layers.0.self_attn.q_proj.bias": (6,),
    "layers.0.mlp.experts.up_proj.bias": (3, 5),
    "layers.0.self_attn.A_log": (6, 4),
    "layers.0.self_attn.conv1d.weight": (6, 4),
    "layers.0.mixer_connection.static_alpha": (2, 3),
}


@pytest.mark.parametrize("make", [AdamW, SGD], ids=["decoupled", "l2"])
def test_matrices_alone_are_decayed(make):
    """With a gradient of zero nothing else moves them."""
    parameters = {name: mx.random.normal(shape) for name, shape in (MATRICES | OTHERS).items()}
    gradients = {name: mx.zeros_like(p) for name, p in parameters.items()}
    optimizer = make(0.1, weight_decay=0.5)
    new = optimizer.apply_gradients(tree_unflatten([*gradients.items()]), tree_unflatten([*parameters.items()]))
    for name, p in tree_flatten(new):
        want = parameters[name] * (0.95 if name in MATRICES else 1.0)
        assert mx.allclose(p, want, rtol=1e-6).item(), name


def test_muon_takes_hidden_matrices_alone():
    parameters = tree_unflatten([(name, mx.random.normal(shape)) for name, shape in (MATRICES | OTHERS).items()])
    optimizer = MuonWithAdamW(0.1, adamw=lambda: AdamW(0.1))
    optimizer.init(parameters)
    flat = dict(tree_flatten(optimizer.state))
    adamw = {
        name.split(".", 2)[2].rsplit(".", 1)[0] for name in flat if name.startswith("states.2") and name[-2:] == ".v"
    }
    assert adamw == {*OTHERS, "embedding.embed_tokens.weight"}
