"""Tokens drawn one after the other, with a cache and one ahead of the reader, against a loop that does neither."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest

from lmxexp import compose, device, load, run
from lmxexp.generate import _draw, generate
from lmxexp.model.build import build_model
from lmxexp.ops.own_gradient import own_gradient, without_own_gradients
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


def test_gradients_of_our_own_are_away_in_the_model_alone(monkeypatch):
    """Not while a token is read, nor once the reader has stopped or the model has raised."""
    model = build_model(compose([*SMALL]), vocab_size=V)
    tokens = generate(model, [1], max_tokens=9)
    next(tokens)
    assert not own_gradient.plain
    tokens.close()
    assert not own_gradient.plain
    found = []

    def fail(*args, **kwargs):
        found.append(bool(own_gradient.plain))
        raise RuntimeError("no room")

    monkeypatch.setattr(type(model), "__call__", fail)
    with pytest.raises(RuntimeError, match="no room"):
        list(generate(model, [1], max_tokens=9))
    assert found == [True]
    assert not own_gradient.plain


@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_a_token_takes_no_more_operations_than_it_has_to(n_kv_heads, monkeypatch, tmp_path):
    """On a GPU, where the host that begins them is what is waited for."""
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    model = build_model(compose([*SMALL, f"model.n_kv_heads={n_kv_heads}"]), vocab_size=V)
    model.eval()
    cache = model.make_cache()
    mx.eval(model(mx.array([[1, 2, 3]]), cache=cache))
    with without_own_gradients():
        mx.export_to_dot(str(tmp_path / "graph"), model(mx.array([[4]]), cache=cache))
    operations = Counter(re.findall(r'label ="(\w+)"', (tmp_path / "graph").read_text()))
    assert operations["CustomTransforms"] == 0
    assert operations["GreaterEqual"] == 0  # the last position sees all, without a mask
    gated = [n for name, n in operations.items() if re.fullmatch("CompiledSigmoid.*Multiply.*Multiply", name)]
    assert sum(gated) == 2  # one a layer
    weights = 2 * 7 + 1
    assert operations["Transpose"] <= weights + 2  # heads are not moved; MLX's attention on a CPU moves the keys


def test_what_was_loaded_writes_in_any_thread(tmp_path):
    """MLX computes what is not computed yet in the thread alone in which it was begun."""
    run(compose(small(tmp_path, "train.steps=1")), tmp_path / "run")
    loaded = load(tmp_path / "run")
    with ThreadPoolExecutor(1) as other:
        there = other.submit(lambda: list(generate(loaded.model, [1, 2], max_tokens=5, seed=4))).result()
    assert there == list(generate(loaded.model, [1, 2], max_tokens=5, seed=4))
