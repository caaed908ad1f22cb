"""Native sparse attention (attention=nsa) against a query-by-query loop in float64."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from lmxexp.interfaces import ConfigError
from lmxexp.model.attention.nsa import Compression, NativeSparseAttention
from lmxexp.model.position.alibi import ALiBi
from lmxexp.model.position.rope import RoPE
from lmxexp.ops.block_selection import attend_to_blocks, select_blocks
from lmxexp.ops.documents import document_starts
from tests.contracts.small_models import randomise, relative_error
from tests.reference.sparse import native_sparse_attention

POSITIONS = {"rope": RoPE, "alibi": ALiBi, "none": None}
LENGTH = 33  # eleven blocks of three, of which at most four are selected


def mixer(seed=0, **settings):
    settings = {"n_heads": 4, "n_kv_heads": 2, "position": RoPE, "block": 3, "n_selected": 4, "window": 5, **settings}
    module = NativeSparseAttention(32, **settings)
    randomise(module, seed)
    # Sharper than they start: which blocks are selected should not hang on the last digit.
    module.compress_k.outer.weight = 4.0 * module.compress_k.outer.weight
    return module


def inputs(length=LENGTH, batch=2):
    return mx.random.normal((batch, length, 32), key=mx.random.key(5))


CASES = {
    "as it is": {},
    "alibi": {"position": "alibi"},
    "no positions": {"position": "none"},
    "one key head": {"n_kv_heads": 1},
    "a key head each": {"n_kv_heads": 4},
    "length no multiple of the block": {"block": 4},
    "two blocks selected": {"n_selected": 2},
    "all blocks selected": {"n_selected": 11},
    "window of one": {"window": 1},
    "window beyond the sequence": {"window": 99},
    "one block, not complete": {"block": 40},
    "biases": {"bias": True},
}


@pytest.mark.parametrize("case", CASES)
def test_outputs(case):
    settings = {"position": "rope", **CASES[case]}
    position = settings.pop("position")
    module = mixer(position=POSITIONS[position], **settings)
    x = inputs()
    p = {name: np.array(a, dtype=np.float64) for name, a in tree_flatten(module.parameters())}
    sizes = {k: v for k, v in settings.items() if k not in ("bias", "position")}
    want = np.stack(
        [
            native_sparse_attention(
                row,
                p,
                position=position,
                **{"n_heads": 4, "n_kv_heads": 2, "block": 3, "n_selected": 4, "window": 5, **sizes},
            )[0]
            for row in np.array(x, dtype=np.float64)
        ]
    )
    assert np.abs(np.array(module(x)) - want).max() / np.abs(want).max() < 5e-6


@pytest.mark.parametrize("split", [(33,), (1, 32), (5, 14, 14), (20, 1, 1, 11), (1,) * 33], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_decoding_continues_the_prompt(position, split):
    """Blocks are completed, compressed and selected across calls as in one."""
    module, x = mixer(position=POSITIONS[position]), inputs()
    cache, got, start = module.make_cache(), [], 0
    for n in split:
        got.append(module(x[:, start : start + n], cache=cache))
        start += n
    assert relative_error(mx.concatenate(got, axis=1), module(x)) < 2e-6


def test_strictly_causal():
    """Not even which blocks are selected may depend on what follows."""
    module, x = mixer(), inputs()
    y = module(x)
    for t in range(1, LENGTH):
        changed = mx.array(x)
        changed[:, t:] = 9.0 * mx.random.normal(x[:, t:].shape, key=mx.random.key(t))
        assert mx.array_equal(module(changed)[:, :t], y[:, :t]).item()


def test_selection_is_sparse():
    """Each query's selected blocks: the first, its own, and the most important others."""
    rng = np.random.default_rng(0)
    importance = rng.uniform(size=(2, 3, 20, 7)).astype(np.float32)
    block, own = np.arange(7), (np.arange(20) // 3)[:, None]
    forced, allowed = (block == own) | (block == 0), block <= own
    got = np.array(select_blocks(mx.array(importance), mx.array(forced)[None, None], mx.array(allowed)[None, None], 4))
    assert not (got & ~allowed).any()
    for i in np.ndindex(2, 3, 20):
        t = i[-1]
        others = sorted((j for j in range(1, own[t, 0])), key=lambda j: -importance[(*i, j)])
        assert set(np.flatnonzero(got[i])) == {0, own[t, 0], *others[: 4 - len({0, own[t, 0]})]}


def test_no_gradient_through_the_choice_but_through_the_weights():
    """Compressed keys learn from compressed attention; selection itself is a choice."""
    q, k, v = (mx.random.normal((1, 2, n, 4), key=mx.random.key(n)) for n in (6, 3, 3))
    visible = mx.tril(mx.ones((6, 3), mx.bool_), -2)[None]

    def chosen(k):
        _, importance = attend_to_blocks(q, k, v, scale=0.5, visible=visible)
        block = mx.arange(3)
        every = mx.broadcast_to(block >= 0, (1, 1, 6, 3))
        return (select_blocks(importance, forced=(block == 0) & every, allowed=every, n_selected=2) * importance).sum()

    assert mx.isfinite(mx.grad(chosen)(k)).all().item()
    y, importance = attend_to_blocks(q, k, v, scale=0.5, visible=visible)
    assert not y[:, :, :2].any().item()  # these see no block
    assert not importance[:, :, :2].any().item()
    gradient = mx.grad(lambda k: attend_to_blocks(q, k, v, scale=0.5, visible=visible)[0].sum())(k)
    assert mx.isfinite(gradient).all().item()
    assert mx.abs(gradient).max().item() > 1e-3


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("border", [1, 6, 10, 31])
def test_documents_do_not_meet(border, position):
    """What a document's positions see does not depend on the other, wherever the border lies: each is as if alone, with
    blocks that begin where it does."""
    module, x = mixer(position=POSITIONS[position]), inputs()
    ids = mx.array([[0] * border + [1] * (LENGTH - border)] * 2)
    y = module(x, segment_ids=ids)
    assert relative_error(y[:, :border], module(x[:, :border])) < 2e-6
    changed = mx.array(x)
    changed[:, :border] += 3.0
    assert mx.array_equal(module(changed, segment_ids=ids)[:, border:], y[:, border:]).item()
    assert relative_error(y[:, border:], module(x[:, border:])) < 1e-5


def test_documents_of_every_row_have_blocks_of_their_own():
    module, x = mixer(), inputs()
    borders = [0, 5, 6, 20, LENGTH], [0, 1, 13, 15, LENGTH]
    ids = mx.array([[sum(t >= b for b in row[1:]) for t in range(LENGTH)] for row in borders])
    y = module(x, segment_ids=ids)
    for i, row in enumerate(borders):
        for begin, end in itertools.pairwise(row):
            assert relative_error(y[i, begin:end], module(x[i : i + 1, begin:end])[0]) < 1e-5


def test_document_starts():
    ids = mx.array([[4, 4, 1, 1, 1, 4], [0, 0, 0, 0, 0, 0]])
    assert document_starts(ids).tolist() == [[0, 0, 2, 2, 2, 5], [0] * 6]


def test_flops_count_what_is_visible():
    """Of every query by itself; the compressing networks by the blocks that they run on."""
    module, L = mixer(block=4), 30
    visible = 0
    for t in range(L):
        own = t // 4
        visible += (t + 1) // 4 + min(t + 1, 5) + t % 4 + 1 + 4 * min(own, 3)
    linear = 2 * (4 * 8 * 8 + 8 * 8)  # weights of both networks
    compressing = 2 * linear * 2 * (L // 4)  # key heads, complete blocks
    counted_by_the_model = 2 * linear * L
    assert module.mixing_flops(L) == (4 * 4 * 8 * visible + compressing - counted_by_the_model) // L


def test_dropout_in_training_only():
    module, x = mixer(dropout=0.5), inputs()
    assert not mx.array_equal(module(x), module(x)).item()
    module.eval()
    assert mx.array_equal(module(x), module(x)).item()


def test_bf16_stays_bf16():
    module, x = mixer(), inputs()
    module.set_dtype(mx.bfloat16)
    y = module(x.astype(mx.bfloat16))
    assert y.dtype == mx.bfloat16


def test_what_is_left_of_a_block_waits():
    compression = Compression(3, 8, bias=True)
    randomise(compression)
    x = mx.random.normal((1, 2, 11, 8))
    assert mx.array_equal(compression(x), compression(x[:, :, :9])).item()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"n_selected": 1}, "n_selected=1 must be at least 2"),
        ({"block": 0}, "block=0 must be at least 1"),
        ({"n_kv_heads": 3}, "n_heads=4 must be a multiple"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"n_heads": 5, "n_kv_heads": 5}, "d_model=32 must be a multiple"),
    ],
)
def test_refuses(settings, says):
    with pytest.raises(ConfigError, match=says):
        mixer(**settings)
