"""Differential attention against its reference."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from tests.contracts.small_models import LENGTH, relative_error, small_config, small_model
from tests.reference.latent import differential_attention

HEADS = "model.n_heads=8 model.n_kv_heads=4"
CASES = {
    "attention=differential": {},
    "attention=differential_gqa": {},
    f"attention=differential_gqa {HEADS}": {},
    "attention=differential position=none": {"position": "none"},
    f"attention=differential_gqa {HEADS} position=alibi": {"position": "alibi"},
    "attention=differential qk_norm=rmsnorm": {"qk_eps": 1e-6},
    "attention=differential softcap@model.score_softcap=tanh model.score_softcap.cap=0.5": {"cap": 0.5},
    "attention=differential model.bias=true": {},
    "attention=differential_gqa model.qkv_bias=true": {},
    "attention=differential +model.attention.reach={_target_:lmxexp.model.attention.reach.Window,window:5}": {
        "window": 5
    },
    "attention=differential "
    "+model.attention.gate={_target_:lmxexp.model.attention.gate.OutputGate,_partial_:true}": {"gated": True},
    "attention=differential "
    "+model.attention.sinks={_target_:lmxexp.model.attention.sinks.Sinks,_partial_:true}": {"sinks": True},
}  # fmt: skip


def build(*overrides, layer_idx=0):
    """A mixer whose lambda, a difference of exponentials, is of the size of one, so that both maps count."""
    mixer = small_model(*overrides).mixers()[layer_idx]
    for i, name in enumerate(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")):
        mixer[name] = 0.4 * mx.random.normal((mixer.head_dim,), key=mx.random.key(10 + i))
    assert abs(mixer._lambda().item() - mixer.lambda_init) > 0.05
    assert abs(mixer._lambda().item()) < 3
    return mixer


@pytest.mark.parametrize("layer_idx", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_against_reference(case, layer_idx):
    mixer = build(*case.split(), layer_idx=layer_idx)
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    sizes = {"n_heads": mixer.n_heads, "n_kv_heads": mixer.n_kv_heads, "layer_idx": layer_idx}
    want = np.stack([differential_attention(row, p, **sizes, **CASES[case]) for row in np.array(x, dtype=np.float64)])
    assert np.abs(np.array(mixer(x)) - want).max() / np.abs(want).max() < 1e-5


def test_equal_maps_cancel():
    """With the same queries and keys in both heads of a pair, and lambda 1, nothing is left before the norm."""
    mixer = small_model("attention=differential").mixers()[0]
    for projection in (mixer.q_proj, mixer.k_proj):
        half = projection.weight[:16]
        projection.weight = mx.concatenate([half, half])
    mixer.head_norm = lambda y: y
    x = mx.random.normal((1, LENGTH, 32))
    for name in ("q1", "k1", "q2", "k2"):
        mixer[f"lambda_{name}"] = mx.zeros((8,))
    mixer.lambda_init = 1.0 - 1e-3
    assert mx.abs(mixer(x)).max().item() < 1e-4
    mixer.lambda_init = 0.2
    assert mx.abs(mixer(x)).max().item() > 1e-1


def test_lambda():
    mixer = build("attention=differential", layer_idx=1)
    dot = lambda a, b: (mixer[f"lambda_{a}"] * mixer[f"lambda_{b}"]).sum().item()
    initial = 0.8 - 0.6 * math.exp(-0.3)
    assert mixer.lambda_init == initial
    want = math.exp(dot("q1", "k1")) - math.exp(dot("q2", "k2")) + initial
    assert mixer._lambda().item() == pytest.approx(want, rel=1e-5)


def test_a_new_model_starts_near_lambda_init():
    cfg = small_config("attention=differential")
    layers = [instantiate(cfg.model.net, _convert_="all")(vocab_size=9).mixers() for _ in range(2)]
    for mixer in layers[0]:
        assert abs(mixer._lambda().item() - mixer.lambda_init) < 0.15
    assert not mx.array_equal(layers[0][0].lambda_q1, layers[0][1].lambda_q1).item()
    assert not mx.array_equal(layers[0][0].lambda_q1, layers[0][0].lambda_k1).item()
    # Whatever the global random state was: a starting value comes from the initialisation's key alone.
    assert mx.array_equal(layers[0][0].lambda_q1, layers[1][0].lambda_q1).item()


def test_values_of_the_first_layer_are_mixed_in():
    """The value residual reaches the values before they are halved."""
    mixer = build("attention=differential", "value_residual=learned", layer_idx=1)
    x, first = (mx.random.normal(shape) for shape in ((1, LENGTH, 32), (1, 4, LENGTH, 8)))
    mixed = mixer(x, shared={"first_values": first})
    mixer.value_residual.first = mx.zeros((1,))
    alone = mixer(x, shared={"first_values": first})
    assert relative_error(alone, mixed) > 1e-2
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    p["v_proj.weight"] = p["v_proj.weight"] * p["value_residual.own"]
    want = differential_attention(np.array(x[0], dtype=np.float64), p, n_heads=4, n_kv_heads=4, layer_idx=1)
    assert np.abs(np.array(alone[0]) - want).max() / np.abs(want).max() < 1e-5


def test_flops_and_state():
    """Scores twice and each half of the values once: 8 FLOPs an element of a head and visible position."""
    mixer = small_model("attention=differential_gqa").mixers()[0]
    assert mixer.mixing_flops(LENGTH) == 8 * 4 * 8 * 300 // 24
    assert mixer.state_size(LENGTH) == 2 * 2 * 8 * LENGTH


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["model.n_heads=3", "model.head_dim=8"], "n_heads"),
        (["attention=differential_gqa", "model.n_kv_heads=1"], "n_kv"),
    ],
)
def test_heads_that_make_no_pairs_are_refused(overrides, key):
    with pytest.raises(ConfigError, match=rf"model\.{key}.* must be even"):
        instantiate(small_config("attention=differential", *overrides).model.net, _convert_="all")(vocab_size=9)
