"""Latent attention against its reference, expanded and not."""

import mlx.core as mx
import numpy as np
import pytest
from hydra.utils import instantiate
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from tests.contracts.small_models import LENGTH, relative_error, small_config, small_model
from tests.reference.latent import frequencies, latent_attention

REACH = "+model.attention.reach={_target_: lmxexp.model.attention.reach.Window, window: 5}"
SIZES = "model.attention.rope_dim=6 model.attention.v_dim=5 model.attention.kv_rank=7 model.head_dim=10"
YARN = "position=rope_yarn model.position.attention.interleaved=true model.position.attention.scaling.original_len=16"
YARN += " model.position.attention.scaling.mscale=1.0 model.position.attention.scaling.mscale_all_dim=0.5"
# Released DeepSeek models pair neighbours, sharpen by YaRN, and have a latent for queries as well.
CASES = {
    "attention=mla": {},
    "attention=mla_q_lora": {},
    "attention=mla position=none": {"position": "none"},
    "attention=mla position=alibi": {"position": "alibi"},
    "attention=mla position=rope_interleaved": {"interleaved": True},
    f"attention=mla_q_lora {YARN}": {"yarn": True, "interleaved": True},
    "attention=mla softcap@model.score_softcap=tanh model.score_softcap.cap=0.5": {"cap": 0.5},
    "attention=mla model.bias=true norm=layernorm": {},
    "attention=mla_q_lora model.qkv_bias=true": {},
    f"attention=mla {SIZES}": {"sizes": (10, 6, 5, 7)},
    f"attention=mla {SIZES} model.attention.v_dim=21": {"sizes": (10, 6, 21, 7)},
    f"attention=mla {SIZES} model.attention.v_dim=21 position=alibi": {"sizes": (10, 6, 21, 7), "position": "alibi"},
}


def build(case, *more):
    overrides = [*case.split(), *more]
    mixer = small_model(*overrides).mixers()[0]
    return mixer, mx.random.normal((2, LENGTH, 32), key=mx.random.key(1))


def reference(mixer, x, sizes=(8, 4, 8, 32), yarn=False, **knobs):
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(mixer.parameters())}
    head_dim, rope_dim, v_dim, kv_rank = sizes
    scaling = {"scaling": "yarn", "factor": 4.0, "original_len": 16} if yarn else {}
    if yarn:
        first, second = 0.1 * np.log(4) + 1, 0.1 * 0.5 * np.log(4) + 1
        knobs |= {"magnitude": first / second, "score_scale": second**2}
    return np.stack(
        [
            latent_attention(
                row, p, n_heads=4, head_dim=head_dim, rope_dim=rope_dim, v_dim=v_dim, kv_rank=kv_rank,
                freqs=frequencies(rope_dim, 10000.0, **scaling), **knobs,
            )
            for row in np.array(x, dtype=np.float64)
        ]
    )  # fmt: skip


def decode(mixer, x, split):
    cache, out, start = mixer.make_cache(), [], 0
    for n in split:
        out.append(mixer(x[:, start : start + n], cache=cache))
        start += n
    return mx.concatenate(out, axis=1), cache


@pytest.mark.parametrize("case", CASES)
def test_against_reference(case):
    """In one go, where latents are expanded, and token by token, where they are not."""
    mixer, x = build(case)
    want = reference(mixer, x, **CASES[case])
    for got in (mixer(x), decode(mixer, x, (1,) * LENGTH)[0], decode(mixer, x, (3, 14, 7))[0]):
        assert np.abs(np.array(got) - want).max() / np.abs(want).max() < 1e-5


@pytest.mark.parametrize("case", ["attention=mla", "attention=mla_q_lora position=alibi"])
def test_window(case):
    mixer, x = build(case, REACH)
    knobs = {"position": "alibi"} if "alibi" in case else {}
    want = reference(mixer, x, window=5, **knobs)
    whole, cache = decode(mixer, x, (LENGTH,))
    pieces, _ = decode(mixer, x, (2, 1, 12, 9))
    for got in (mixer(x), whole, pieces):
        assert np.abs(np.array(got) - want).max() / np.abs(want).max() < 1e-5
    assert sum(a[0].size for a in cache.state) == mixer.state_size(LENGTH) == 5 * (32 + 4)


def test_cache_is_the_latent_and_one_key():
    """36 elements a position, where full keys and values would be 4 (12 + 8) = 80; and nothing else is kept."""
    mixer, x = build("attention=mla")
    _, cache = decode(mixer, x, (LENGTH,))
    latent, key = cache.state
    assert latent.shape == (2, 1, LENGTH, 32)
    assert key.shape == (2, 1, LENGTH, 4)
    assert mixer.state_size(LENGTH) == LENGTH * 36
    compressed = mixer.kv_a_proj_with_mqa(x)
    assert relative_error(latent[:, 0], mixer.kv_a_layernorm(compressed[..., :32])) < 1e-6
    turned, _ = mixer.position.rotate(compressed[:, None, :, 32:], compressed[:, None, :, 32:], 0)
    assert relative_error(key, turned) < 1e-6


def test_decoding_expands_nothing():
    """Few new positions after many: the cached latents are attended to as they are."""
    mixer, x = build("attention=mla")
    _, cache = decode(mixer, x[:, :-3], (LENGTH - 3,))

    def expand(*_):
        raise AssertionError("keys and values of all positions were made")

    mixer._keys_and_values = expand
    want = reference(mixer, x)
    got = [mixer(x[:, -3:-1], cache=cache), mixer(x[:, -1:], cache=cache)]
    assert np.abs(np.array(mx.concatenate(got, axis=1)) - want[:, -3:]).max() / np.abs(want).max() < 1e-5


def test_documents_in_a_row_are_each_as_if_alone():
    mixer, x = build("attention=mla")
    ids = mx.array([[3] * 9 + [4] * 15] * 2)
    together = mixer(x, segment_ids=ids)
    # Rotary scores depend on distances alone, so a document is the same wherever it stands.
    alone = mx.concatenate([mixer(x[:, :9]), mixer(x[:, 9:])], axis=1)
    assert relative_error(together, alone) < 1e-5


def test_sizes_that_are_not_given():
    mixer, _ = build("attention=mla_q_lora")
    assert (mixer.head_dim, mixer.rope_dim, mixer.v_dim, mixer.kv_rank, mixer.q_rank) == (8, 4, 8, 32, 8)
    assert build("attention=mla")[0].q_rank == 0


def test_flops_of_mixing():
    """Scores of 12 elements and values of 8, two FLOPs each, for 4 heads and 300 visible pairs of 24 positions."""
    mixer, _ = build("attention=mla")
    assert mixer.mixing_flops(LENGTH) == 2 * 4 * (12 + 8) * 300 // 24


def test_dropout_keeps_the_mean():
    mixer, x = build("attention=mla", "model.dropout=0.3")
    mixer.train()
    mx.random.seed(0)
    draws = mx.stack([mixer(x) for _ in range(300)])
    mixer.eval()
    plain = mixer(x)
    assert relative_error(draws.mean(axis=0), plain) < 0.15
    assert relative_error(draws[0], plain) > 0.15


@pytest.mark.parametrize("knob", ["rope_dim=0", "v_dim=0", "kv_rank=-1", "q_rank=-1"])
def test_sizes_that_cannot_work_are_refused(knob):
    with pytest.raises(ConfigError, match=f"model.attention.{knob.split('=')[0]}="):
        instantiate(
            small_config("attention=mla", f"model.attention.{knob}", "position=none").model.net, _convert_="all"
        )(vocab_size=9)
