"""Hyper-connections (block=hyper_connections, block=hyper_connections_static) against float64, stream by stream."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.model.block.hyper_connections import Connection, HyperConnections
from lmxexp.model.norm.rmsnorm import RMSNorm
from tests.contracts.small_models import VOCAB, relative_error, small_config, small_model, tokens
from tests.reference.transformer import Transformer


class Hyper(Transformer):
    """Zhu et al. 2024, eqs. 1-13, one position and one stream at a time."""

    n_streams: int

    def layer(self, x, n):
        i = int(n.split(".")[1])
        streams = [x] * self.n_streams if i == 0 else x
        attention = lambda h: self.attention(self.norm(h, f"{n}.input_layernorm"), f"{n}.self_attn")
        ffn = lambda h: self.ffn(self.norm(h, f"{n}.post_attention_layernorm"), f"{n}.mlp")
        streams = self.connect(streams, attention, f"{n}.mixer_connection")
        streams = self.connect(streams, ffn, f"{n}.ffn_connection")
        return sum(streams) if i == self.n_layers - 1 else streams

    def connect(self, streams, sublayer, name):
        p, n, T = self.p, self.n_streams, len(streams[0])
        read = np.zeros((T, n))  # weight of each stream in the sublayer's input
        keep = np.zeros((T, n, n))  # of stream i in what stream j goes on with
        write = np.zeros((T, n))  # of the sublayer's output in each stream
        for t in range(T):
            for i in range(n):
                alpha, beta = p[f"{name}.static_alpha"][i], p[f"{name}.static_beta"][i]
                if f"{name}.dynamic_alpha" in p:
                    h = self.norm(streams[i][t : t + 1], f"{name}.norm")[0]
                    alpha = alpha + p[f"{name}.alpha_scale"] * np.tanh(h @ p[f"{name}.dynamic_alpha"])
                    beta = beta + p[f"{name}.beta_scale"][0] * np.tanh(h @ p[f"{name}.dynamic_beta"])[0]
                read[t, i], keep[t, i], write[t, i] = alpha[0], alpha[1:], beta
        y = sublayer(sum(read[:, i, None] * streams[i] for i in range(n)))
        return [sum(keep[:, i, j, None] * streams[i] for i in range(n)) + write[:, j, None] * y for j in range(n)]


CASES = {
    "dynamic": ["block=hyper_connections", "model.n_layers=3"],
    "static": ["block=hyper_connections_static", "model.n_layers=3"],
    "two streams": ["block=hyper_connections", "model.block.n_streams=2"],
    "one stream": ["block=hyper_connections", "model.block.n_streams=1"],
    "one layer": ["block=hyper_connections", "model.n_layers=1"],
    "layer norm": ["block=hyper_connections", "norm=layernorm", "model.bias=true"],
}


def keep_the_streams_apart(model):
    """Random weights may cancel a stream, whose norm would then be made of rounding errors: a change of the weights by
    1e-7 moved logits by 1e-4. They do not if they are less random, and add to what they start at."""
    for connection in model.modules():
        if isinstance(connection, Connection):
            n = connection.static_beta.size
            start = mx.concatenate([mx.ones((n, 1)), mx.eye(n)], axis=1)
            connection.static_alpha = start + 0.2 * connection.static_alpha
            if "norm" in connection:
                connection.alpha_scale, connection.beta_scale = (
                    0.2 * connection.alpha_scale,
                    0.2 * connection.beta_scale,
                )


@pytest.mark.parametrize("case", CASES)
def test_logits(case):
    model, cfg = small_model(*CASES[case]), small_config(*CASES[case]).model
    keep_the_streams_apart(model)
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(model.parameters())}
    reference = Hyper(p, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads)
    reference.n_streams = cfg.block.n_streams
    x = tokens(2)
    want = np.stack([reference(row) for row in np.array(x)])
    assert np.abs(np.array(model(x)) - want).max() / np.abs(want).max() < 2e-5


@pytest.mark.parametrize("kind", ["hyper_connections", "hyper_connections_static"])
def test_starts_as_pre_norm(kind):
    """At first every stream is the residual stream of a pre-norm block."""
    small = lambda block: instantiate(small_config(f"block={block}", "model.n_layers=3").model.net, _convert_="all")(
        vocab_size=VOCAB
    )
    plain, hyper = small("pre_norm"), small(kind)
    weights = dict(tree_flatten(plain.parameters()))
    hyper.load_weights(list(weights.items()), strict=False)
    x = tokens()
    plain.norm = hyper.norm = nn.Identity()
    assert relative_error(hyper.hidden(x)[0], 4.0 * plain.hidden(x)[0]) < 1e-5
    first = hyper.layers[0](plain.embedding.embed(x))[0].reshape(2, -1, 4, 32)
    assert all(relative_error(first[:, :, i], first[:, :, 0]) < 1e-6 for i in range(4))


def test_sublayers_read_the_streams_in_turn():
    """At first, layer l's mixer reads stream 2 l, its feed-forward stream 2 l + 1, modulo n."""
    model = instantiate(small_config("block=hyper_connections", "model.n_layers=3").model.net)(vocab_size=VOCAB)
    read = [c.static_alpha[:, 0].tolist() for m in model.layers for c in (m.mixer_connection, m.ffn_connection)]
    assert [r.index(1.0) for r in read] == [0, 1, 2, 3, 0, 1]


def test_weights_keep_their_digits_in_bf16():
    """A dynamic weight of a few thousandths is not lost beside the one that it is added to."""
    mx.random.seed(0)
    connection = Connection(32, 4, 0, RMSNorm)
    connection.dynamic_beta = mx.random.normal((32, 1))
    streams = mx.random.normal((1, 3, 4, 32))
    want = connection(streams)[2]
    connection.set_dtype(mx.bfloat16)
    h, _, share = connection(streams.astype(mx.bfloat16))
    assert h.dtype == mx.bfloat16
    assert mx.abs(want - 1.0).max().item() > 5e-3
    assert mx.abs(share - want).max().item() < 3e-4


def test_a_layer_outside_the_stack_stands_alone():
    cfg = small_config("block=hyper_connections", "model.n_layers=2").model
    factory = instantiate(cfg.block, _convert_="all")
    layer = factory(d_model=32, layer_idx=2, mixer=None, ffn=instantiate(cfg.ffn))
    x = mx.random.normal((1, 5, 32))
    assert layer(x)[0].shape == x.shape


def test_flops_are_counted():
    """Dynamic weights of each sublayer: two products with D (n + 2) weights and streams; and mixing n streams."""
    static, dynamic = (small_model(f"block=hyper_connections{s}", "model.n_layers=2") for s in ("_static", ""))
    plain = small_model("model.n_layers=2")
    sublayers, n, D = 4, 4, 32
    mixing = 2 * n * (n + 1) * D
    assert static.flops_per_token(24) - plain.flops_per_token(24) == 3 * sublayers * mixing
    making = 2 * n * D * (n + 1) + 2 * n * D
    assert dynamic.flops_per_token(24) - static.flops_per_token(24) == 3 * sublayers * making


def test_refuses():
    with pytest.raises(ConfigError, match="n_streams=0 must be at least 1"):
        small_model("block=hyper_connections", "model.block.n_streams=0")
    layer = HyperConnections(8, 1, None, None, RMSNorm, n_layers=3)
    with pytest.raises(ConfigError, match="give all that block"):
        layer(mx.zeros((1, 2, 8)))
