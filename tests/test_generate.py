"""Tokens drawn one after the other, with a cache and one ahead of the reader, against a loop that does neither."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from lmxexp import compose, load, run
from lmxexp.generate import _draw, generate
from lmxexp.model.build import build_model
from tests.end_to_end.processes import small

V = 37
SMALL = (
    "size=tiny",
    "model.n_layers=2",
    "model.d_model=32",
    "model.n_heads=2",
    "model.n_kv_heads=2",
    "embedding=untied",
)


def plainly(model, prompt, n, temperature, top_p, seed):
    """The whole context computed anew for each token, which is read before the next is begun."""
    key, context, drawn = mx.random.key(seed), list(prompt), []
    if model.max_len is not None:
        context = context[-model.max_len :]
    for _ in range(n):
        if model.max_len is not None and len(context) > model.max_len:
            context = context[-(model.max_len // 2) :]
        key, subkey = mx.random.split(key)
        drawn.append(_draw(model(mx.array([context]))[0, -1], temperature, top_p, subkey).item())
        context.append(drawn[-1])
    return drawn


@pytest.mark.parametrize("overrides", [(), ("model=gpt", "model.position.embedding.max_len=8")], ids=["llama", "gpt"])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.5, 1.0), (1.5, 0.9)])
@pytest.mark.parametrize("n_prompt", [1, 5, 8, 11])
def test_the_tokens_are_those_of_a_plain_loop(overrides, temperature, top_p, n_prompt):
    """Of a gpt with 8 positions the context is cut several times."""
    model = build_model(compose([*overrides, *SMALL]), vocab_size=V)
    for i, part in enumerate(("embed_tokens", "lm_head")):  # or one token would follow itself for ever
        weight = mx.random.normal((V, 32), key=mx.random.key(i + 40))
        model.load_weights([(f"embedding.{part}.weight", weight)], strict=False)
    model.eval()
    prompt = mx.random.randint(0, V, (n_prompt,), key=mx.random.key(2)).tolist()
    ours = list(generate(model, prompt, max_tokens=30, temperature=temperature, top_p=top_p, seed=3))
    assert ours == plainly(model, prompt, 30, temperature, top_p, 3)
    assert len(set(ours)) > 2  # or a token too many or too few would not show


@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_no_more_are_drawn_than_asked_for(n):
    model = build_model(compose([*SMALL]), vocab_size=V)
    assert len(list(generate(model, [1], max_tokens=n))) == n


def test_a_reader_that_stops_leaves_the_model_in_training():
    model = build_model(compose([*SMALL]), vocab_size=V)
    model.train()
    tokens = generate(model, [1], max_tokens=9)
    next(tokens)
    assert not model.training
    tokens.close()
    assert model.training


def test_what_was_loaded_writes_in_any_thread(tmp_path):
    """MLX computes what is not computed yet in the thread alone in which it was begun."""
    run(compose(small(tmp_path, "train.steps=1")), tmp_path / "run")
    loaded = load(tmp_path / "run")
    with ThreadPoolExecutor(1) as other:
        there = other.submit(lambda: list(generate(loaded.model, [1, 2], max_tokens=5, seed=4))).result()
    assert there == list(generate(loaded.model, [1, 2], max_tokens=5, seed=4))
