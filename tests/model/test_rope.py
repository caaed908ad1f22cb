"""Rotary positions with scaling, partial and interleaved, and the temperature of layers without them."""

import math
from functools import partial

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.model.position.rope import RoPE
from lmxexp.model.position.rotated import rotated
from lmxexp.model.position.scaling import NTK, Linear, Llama3, YaRN
from lmxexp.model.position.temperature import Temperature
from tests.contracts.small_models import LENGTH, relative_error, small_config, small_model
from tests.reference.latent import attention, frequencies, turn

YARN = {"factor": 8.0, "original_len": 256, "beta_fast": 16.0}
SCALINGS = {
    "linear": (Linear(3.0), {"factor": 3.0}),
    "ntk": (NTK(3.0), {"factor": 3.0}),
    "llama3": (Llama3(8.0, 512), {"factor": 8.0, "original_len": 512}),
    "llama3 wide": (Llama3(4.0, 64, 2.0, 9.0), {"factor": 4.0, "original_len": 64, "low_freq_factor": 2.0,
                                                  "high_freq_factor": 9.0}),
    "yarn": (YaRN(**YARN), YARN),
    "yarn whole": (YaRN(**YARN, truncate=False), {**YARN, "truncate": False}),
    "yarn released": (YaRN(40.0, 4096), {"factor": 40.0, "original_len": 4096}),
}  # fmt: skip


@pytest.mark.parametrize("dims", [4, 8, 64, 96])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies(name, theta, dims):
    scaling, knobs = SCALINGS[name]
    want = np.array(frequencies(dims, theta, name.split()[0], **knobs))
    assert np.abs(np.array(scaling.frequencies(dims, theta)) / want - 1).max() < 1e-12
    plain = np.array(frequencies(dims, theta))
    assert (want <= plain * (1 + 1e-12)).all()
    assert (want >= plain / knobs["factor"] * (1 - 1e-12)).all()


@pytest.mark.parametrize("dims", [8, 64])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_and_magnitude_are_transformers(name, dims):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling, knobs = SCALINGS[name]
    kind = name.split()[0]
    names = {"original_len": "original_max_position_embeddings"}
    seq_len = None
    if kind == "ntk":
        # Theirs depends on the length: at three times the longest one, its base is ours.
        kind, knobs, seq_len = "dynamic", {"factor": 1.0}, 3 * 128
    their_config = LlamaConfig(
        hidden_size=4 * dims,
        num_attention_heads=4,
        head_dim=dims,
        max_position_embeddings=128 if seq_len else int(knobs.get("original_len", 128) * knobs["factor"]),
        rope_parameters={
            "rope_type": kind,
            "rope_theta": 10000.0,
            **({"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}),
            **{names.get(k, k): v for k, v in knobs.items()},
        },
    )
    want, magnitude = ROPE_INIT_FUNCTIONS[kind](their_config, "cpu", seq_len=seq_len)
    got = np.array(scaling.frequencies(dims, 10000.0))
    assert np.abs(got / want.numpy().astype(np.float64) - 1).max() < 2e-6
    assert scaling.magnitude == pytest.approx(magnitude, rel=1e-12)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.707, 0.9)])
def test_yarn_shares_its_sharpening_as_deepseek_does(shares):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

    theirs = DeepseekV3Config(
        max_position_embeddings=160,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0, "original_max_position_embeddings": 4,
            "mscale": shares[0], "mscale_all_dim": shares[1],
        },
    )  # fmt: skip
    ours = YaRN(40.0, 4, mscale=shares[0], mscale_all_dim=shares[1])
    assert ours.magnitude == pytest.approx(ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")[1], rel=1e-12)
    wanted = DeepseekV3Attention(theirs, layer_idx=0).scaling / theirs.qk_head_dim**-0.5
    assert ours.score_scale == pytest.approx(wanted, rel=1e-12)
    assert ours.score_scale == pytest.approx((0.1 * shares[1] * math.log(40) + 1) ** 2, rel=1e-12)


ROTATIONS = {
    "plain": {},
    "interleaved": {"interleaved": True},
    "partial": {"fraction": 0.25},
    "partial interleaved": {"fraction": 0.5, "interleaved": True, "theta": 100.0},
    "yarn": {"scaling": partial(YaRN, 8.0, 16)},
    "yarn partial interleaved": {"scaling": partial(YaRN, 8.0, 16), "fraction": 0.5, "interleaved": True},
    "ntk": {"scaling": partial(NTK, 4.0)},
}


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotation(name):
    knobs = ROTATIONS[name]
    rope = RoPE(16, 3, **knobs)
    n = int(16 * knobs.get("fraction", 1.0))
    scaling = rope.scaling
    assert rope.dims == n
    kind = None if scaling is None else type(scaling).__name__.lower()
    freqs = frequencies(n, knobs.get("theta", 10000.0), kind, **_knobs(scaling))
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 3, 5, 16)), rng.normal(size=(2, 1, 5, 16))
    got = rope.rotate(mx.array(q.astype(np.float32)), mx.array(k.astype(np.float32)), 11)
    magnitude = 0.1 * math.log(8.0) + 1 if kind == "yarn" else 1.0
    for x, y in zip((q, k), got, strict=True):
        want = [
            [[turn(v, 11 + t, freqs, interleaved=rope.interleaved, magnitude=magnitude) for t, v in enumerate(head)]
             for head in row] for row in x
        ]  # fmt: skip
        assert np.abs(np.array(y) - np.array(want)).max() < 1e-5


def _knobs(scaling):
    if scaling is None:
        return {}
    return {"factor": scaling.factor, **({"original_len": 16} if isinstance(scaling, YaRN) else {})}


MODELS = {
    "position=rope_linear": {"scaling": "linear", "factor": 4.0},
    "position=rope_ntk": {"scaling": "ntk", "factor": 4.0},
    "position=rope_llama3 model.position.attention.scaling.original_len=64": {
        "scaling": "llama3", "factor": 8.0, "original_len": 64,
    },
    "position=rope_yarn model.position.attention.scaling.original_len=64": {
        "scaling": "yarn", "factor": 4.0, "original_len": 64,
    },
    "position=rope_partial": {},
    "position=rope_interleaved": {},
    "position=temperature model.position.attention.floor_scale=5 model.position.attention.attn_scale=0.7": {},
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_attention_with_each_position(case):
    mixer = small_model(*case.split()).mixers()[0]
    x = mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    if "temperature" in case:
        on_query = lambda v, t: v * (1 + 0.7 * math.log(1 + (t + 1) // 5))
        on_key = lambda v, t: v
    else:
        freqs = frequencies(2 if "partial" in case else 8, 10000.0, **MODELS[case])
        magnitude = 0.1 * math.log(4) + 1 if "yarn" in case else 1.0
        on_query = on_key = lambda v, t: turn(v, t, freqs, interleaved="interleaved" in case, magnitude=magnitude)
    for row, got in zip(np.array(x, dtype=np.float64), np.array(mixer(x)), strict=True):
        want = attention(row, p, n_heads=4, n_kv_heads=2, on_query=on_query, on_key=on_key)
        assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("knobs", [{}, {"interleaved": True}, {"scaling": partial(YaRN, 4.0, 4096)}], ids=str)
def test_angles_of_far_positions_are_fp32(knobs, dtype):
    """At position 100,000 an angle in fp32 is exact to 2**-7; a position in bf16 would be wrong by hundreds."""
    rope = RoPE(16, 1, **knobs)
    x = mx.random.normal((1, 1, 4, 16), key=mx.random.key(0)).astype(dtype)
    got, _ = rope.rotate(x, x, 100_000)
    freqs = frequencies(16, 10000.0) if rope.scaling is None else frequencies(16, 10000.0, "yarn", factor=4.0,
                                                                              original_len=4096)  # fmt: skip
    rows = np.array(x.astype(mx.float32), dtype=np.float64)[0, 0]
    want = np.stack(
        [
            turn(v, 100_000 + t, freqs, interleaved=rope.interleaved, magnitude=rope.magnitude)
            for t, v in enumerate(rows)
        ]
    )
    assert got.dtype == dtype
    assert np.abs(np.array(got.astype(mx.float32))[0, 0] - want).max() < (0.02 if dtype == mx.float32 else 0.04)


@pytest.mark.parametrize("position", ["rope", "rope_yarn", "rope_interleaved", "temperature"])
def test_decoding_at_a_far_position(position):
    """After 100,000 positions, however the next ones are cut up, they see each other as they do at the start."""
    mixer = small_model("attention=sliding", f"position={position}").mixers()[0]
    x = mx.random.normal((1, LENGTH, 32), key=mx.random.key(2))

    def decode(*split):
        cache, out, start = mixer.make_cache(), [], 0
        cache.offset = 100_000
        for n in split:
            out.append(mixer(x[:, start : start + n], cache=cache))
            start += n
        assert cache.offset == 100_000 + LENGTH
        return mx.concatenate(out, axis=1)

    whole = decode(LENGTH)
    for split in ((1,) * LENGTH, (7, 1, 16), (1, LENGTH - 1)):
        assert relative_error(decode(*split), whole) < 1e-5
    if position != "temperature":
        assert relative_error(whole, mixer(x)) < 0.02


def test_temperature_grows_in_steps():
    position = Temperature(head_dim=2, n_heads=1, floor_scale=4, attn_scale=0.5)
    q = mx.ones((1, 1, 9, 2))
    got, k = position.rotate(q, q, 2)
    want = [1 + 0.5 * math.log(1 + (t + 1) // 4) for t in range(2, 11)]
    assert np.abs(np.array(got[0, 0, :, 0]) - want).max() < 1e-6
    assert mx.array_equal(k, q).item()
    assert position.bias(3, 5) is None
    half, _ = position.rotate(q.astype(mx.bfloat16), q.astype(mx.bfloat16), 2)
    assert half.dtype == mx.bfloat16


def test_temperature_counts_from_each_documents_beginning():
    position = Temperature(head_dim=2, n_heads=1, floor_scale=2, attn_scale=0.5)
    q = mx.ones((2, 1, 6, 2))
    ids = mx.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 2]])
    got, _ = rotated(position, q, q, None, ids)
    alone, _ = rotated(position, q, q, None, None)
    factors = alone[0, 0, :, 0].tolist()
    want = [factors[:3] * 2, [factors[0], *factors[:4], factors[0]]]
    assert got[:, 0, :, 0].tolist() == want
    assert factors[3] > factors[1] > factors[0]


def test_yarn_scores_of_latent_attention_are_sharpened():
    sharp = ["position=rope_yarn", "model.position.attention.scaling.mscale=1.0"]
    sharp += ["model.position.attention.scaling.mscale_all_dim=0.5"]
    latent = small_model("attention=mla", *sharp).mixers()[0]
    plain = small_model("attention=mla").mixers()[0]
    assert latent.scale / plain.scale == pytest.approx((0.05 * math.log(4) + 1) ** 2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("position.attention.fraction=0.0", "must be in"),
        ("position.attention.fraction=1.5", "must be in"),
        ("position.attention.theta=1.0", "must be more than 1"),
        ("head_dim=5", "must be even"),
        ("position.attention.scaling.factor=0.5", "at least 1"),
        ("position.attention.scaling.mscale=1.0", "set both or neither"),
        ("position.attention.scaling.beta_slow=40.0", "must be less than"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        _build("position=rope_yarn", f"model.{setting}")


def test_settings_of_other_scalings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="must be less than"):
        _build("position=rope_llama3", "model.position.attention.scaling.low_freq_factor=4.0")
    with pytest.raises(ConfigError, match="two turned pairs"):
        _build("position=rope_ntk", "model.head_dim=2")
    with pytest.raises(ConfigError, match="at least 1 position"):
        _build("position=temperature", "model.position.attention.floor_scale=0")


def _build(*overrides):
    return instantiate(small_config(*overrides).model.net, _convert_="all")(vocab_size=9)
