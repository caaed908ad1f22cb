"""Multi-token prediction (loss=multi_token) against float64, and what it must not do."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp import build_model, compose
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.loss.cross_entropy import CrossEntropy
from lmxexp.loss.multi_token import MultiToken
from lmxexp.model.ahead import Ahead
from lmxexp.train.step import TrainStep
from tests.contracts.small_models import LENGTH, VOCAB, relative_error, small_config, small_model, tokens
from tests.reference.transformer import Transformer

MULTI = ["loss=multi_token", "loss.n_ahead=2"]


def batch(seed=1, **more):
    data = tokens(2, LENGTH + 1, seed)
    return Batch(data[:, :-1], data[:, 1:], **more)


def log_softmax(x):
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def reference_losses(model, cfg, inputs, targets, n_ahead):
    """Mean nll of the next token and of each further one, of one sequence, position by position."""
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(model.parameters())}
    net = Transformer(p, n_layers=cfg.n_layers, n_heads=cfg.n_heads, n_kv_heads=cfg.n_kv_heads)
    net.first_values = None  # of the value residual, which there is none of here
    embedding = p["embedding.embed_tokens.weight"]
    x = embedding[inputs]
    for i in range(cfg.n_layers):
        x = net.layer(x, f"layers.{i}")
    h = net.norm(x, "norm")
    means = [-np.mean([log_softmax(embedding @ h[i])[targets[i]] for i in range(len(inputs))])]
    for k in range(1, n_ahead + 1):
        name = f"ahead.{k - 1}"
        positions = range(len(inputs) - k)
        states = net.norm(np.stack([h[i] for i in positions]), f"{name}.hnorm")
        following = net.norm(np.stack([embedding[inputs[i + k]] for i in positions]), f"{name}.enorm")
        both = np.concatenate([states, following], axis=1) @ p[f"{name}.eh_proj.weight"].T
        h = net.norm(net.layer(both, f"{name}.layer"), f"{name}.norm")
        means.append(-np.mean([log_softmax(embedding @ h[i])[targets[i + k]] for i in positions]))
    return means


def test_losses():
    model, cfg = small_model(*MULTI), small_config(*MULTI).model
    data = batch()
    loss, aux = MultiToken(n_ahead=2, weight=0.3)(model, data)
    rows = [
        reference_losses(model, cfg, i, t, 2)
        for i, t in zip(np.array(data.inputs), np.array(data.targets), strict=True)
    ]
    plain, first, second = np.mean(rows, axis=0)
    assert (aux["nll"] / aux["n_targets"]).item() == pytest.approx(plain, rel=1e-5)
    assert aux["nll_ahead_1"].item() == pytest.approx(first, rel=1e-5)
    assert aux["nll_ahead_2"].item() == pytest.approx(second, rel=1e-5)
    assert loss.item() == pytest.approx(plain + 0.3 * (first + second) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [[], ["attention=mla"], ["block=parallel"], ["model=rwkv7"], ["attention=rwkv7"], ["block=hyper_connections"]],
    ids=str,
)
def test_sees_no_token_that_it_predicts(overrides):
    """The k-th module's position i sees the tokens up to i + k, and those all."""
    model = small_model(*MULTI, *overrides)
    x = tokens(1)

    def outputs(x):
        return model.look_ahead(model.hidden(x)[0], x)[0]

    before = outputs(x)
    assert [o.shape[1] for o in before] == [LENGTH - 1, LENGTH - 2]
    for t in (3, 11, LENGTH - 1):
        changed = mx.array(x)
        changed[:, t] = (x[:, t] + 1) % VOCAB
        for k, (a, b) in enumerate(zip(before, outputs(changed), strict=True), start=1):
            first = t - k  # the first position that may see token t
            assert mx.array_equal(a[:, :first], b[:, :first]).item()
            assert not mx.allclose(a[:, first], b[:, first]).item()


def test_choosing_the_loss_is_enough():
    cfg = compose(["loss=multi_token", "loss.n_ahead=3", "model.d_model=32"])
    model = build_model(cfg, vocab_size=VOCAB)
    assert [type(m) for m in model.ahead] == [Ahead] * 3
    assert not build_model(compose(["model.d_model=32"]), vocab_size=VOCAB).ahead


def test_evaluation_and_sampling_are_those_of_the_plain_model():
    model, plain = small_model(*MULTI), small_model()
    shared = {name: a for name, a in tree_flatten(model.parameters()) if not name.startswith("ahead.")}
    plain.load_weights(list(shared.items()))
    data = batch()
    assert mx.array_equal(model(data.inputs), plain(data.inputs)).item()
    assert len(model.make_cache()) == len(plain.make_cache())
    assert model.state_size(LENGTH) == plain.state_size(LENGTH)
    model.eval()
    plain.eval()
    got, got_aux = MultiToken(n_ahead=2)(model, data)
    want, want_aux = CrossEntropy()(plain, data)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)  # GPUs sum in another order from program to program
    assert got_aux.keys() == want_aux.keys()
    assert all(mx.array_equal(got_aux[k], want_aux[k]).item() for k in want_aux)


@pytest.mark.parametrize("overrides", [[], ["embedding=untied"], ["model=gpt"], ["norm=layernorm"]], ids=str)
def test_every_parameter_gets_a_gradient(overrides):
    model = small_model(*MULTI, *overrides)
    loss, data = MultiToken(n_ahead=2), batch()
    _, gradient = nn.value_and_grad(model, lambda m: loss(m, data)[0])(model)
    for path, g in tree_flatten(gradient):
        assert mx.isfinite(g).all().item(), path
        if not path.endswith("k_proj.bias"):
            assert mx.abs(g).max().item() > 1e-7, f"{path} gets no gradient"


def test_parameters_and_flops_are_counted():
    """A module: a layer, a projection of 2 D to D, three norms; and the head once more."""
    model, plain = small_model(*MULTI), small_model()
    D = 32
    layer = sum(p.size for _, p in tree_flatten(plain.layers[0].parameters()))
    assert model.n_params() - plain.n_params() == 2 * (layer + 2 * D * D + 3 * D)
    matrices = layer - 2 * D  # without its norms
    weights = 2 * (matrices + 2 * D * D + VOCAB * D)
    mixing = 2 * plain.mixers()[0].mixing_flops(LENGTH)
    assert model.flops_per_token(LENGTH) - plain.flops_per_token(LENGTH) == 3 * (2 * weights + mixing)
    assert len(model.mixers()) == len(plain.mixers())


def test_weights_and_documents():
    """A target without weight, or of another document than its position, does not count."""
    model = small_model(*MULTI)
    data = batch()
    ids = mx.array([[0] * 10 + [1] * (LENGTH - 10)] * 2)
    weights = mx.ones((2, LENGTH))
    weights[:, 17] = 0.0
    _, aux = MultiToken(n_ahead=2)(model, Batch(data.inputs, data.targets, weights, ids))
    outputs, _ = model.look_ahead(model.hidden(data.inputs, segment_ids=ids)[0], data.inputs, segment_ids=ids)
    for k, h in enumerate(outputs, start=1):
        nll, n = 0.0, 0
        for row in range(2):
            for i in range(LENGTH - k):
                if i + k == 17 or (i < 10) != (i + k < 10):
                    continue
                nll -= log_softmax(np.array(model.logits(h))[row, i].astype(np.float64))[
                    data.targets[row, i + k].item()
                ]
                n += 1
        assert aux[f"nll_ahead_{k}"].item() == pytest.approx(nll / n, rel=1e-5)
    changed = mx.array(data.inputs)
    changed[:, :10] = (changed[:, :10] + 1) % VOCAB
    other, _ = model.look_ahead(model.hidden(changed, segment_ids=ids)[0], changed, segment_ids=ids)
    for a, b in zip(outputs, other, strict=True):
        assert mx.array_equal(a[:, 10:], b[:, 10:]).item()


def test_trains():
    """Both losses fall, compiled and in parts as a whole."""
    cfg = small_config(*MULTI)
    histories = []
    for settings in ({"compile": True}, {"compile": False}, {"compile": False, "n_micro": 2}):
        model = build_model(cfg, vocab_size=VOCAB)
        optimizer = mlx.optimizers.Adam(learning_rate=3e-3)
        optimizer.init(model.trainable_parameters())
        step = TrainStep(model, optimizer, MultiToken(n_ahead=2), **settings)
        history = []
        for _ in range(6):
            scalars = step(batch())
            mx.eval(scalars, step.state)
            history.append([scalars[f"train/{k}"].item() for k in ("loss", "nll_ahead_1", "nll_ahead_2")])
        histories.append(mx.array(history))
    for history in histories:
        assert (history[-1] < history[0]).all().item()
        assert relative_error(history, histories[0]) < 1e-4


def test_what_layers_keep_reaches_the_modules():
    """What the layer of a module returns beside its output comes back to it after the update, and its loss counts."""
    seen = []

    class Keeper(nn.Module):
        def __call__(self, x, **kwargs):
            return x, {"load": mx.array(4.0), "balance_loss": mx.array(0.25)}

        def after_update(self, aux):
            seen.append(aux)

    model = small_model(*MULTI)
    plain_loss, _ = MultiToken(n_ahead=2)(model, batch())
    model.ahead[1].layer = Keeper()
    loss, aux = MultiToken(n_ahead=2)(model, batch())
    n = len(model.layers)
    assert aux[f"load/{n + 1}"].item() == 4.0
    change = 0.15 * (aux["nll_ahead_2"] - MultiToken(n_ahead=2)(small_model(*MULTI), batch())[1]["nll_ahead_2"]).item()
    assert loss.item() == pytest.approx(plain_loss.item() + change + 0.25, rel=1e-5)
    model.after_update(aux)
    assert [a["load"].item() for a in seen] == [4.0]


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"n_ahead": 0}, "n_ahead=0 must be at least 1"), ({"weight": 0.0}, "weight=0.0 must be positive")],
)
def test_refuses_settings(settings, says):
    with pytest.raises(ConfigError, match=says):
        MultiToken(**settings)


def test_refuses_models_and_sequences():
    with pytest.raises(ConfigError, match="made with 0 modules"):
        MultiToken(n_ahead=2)(small_model(), batch())
    short = Batch(tokens(2, 2), tokens(2, 2))
    with pytest.raises(ConfigError, match=r"n_ahead=2 must be less than the 2 tokens of a sequence \(train\.seq_len"):
        MultiToken(n_ahead=2)(small_model(*MULTI), short)
