"""``python -m lmxexp.describe``: counts against what the sizes say, memory against what a step takes."""

import json

import mlx.core as mx
import numpy as np
import pytest

from lmxexp import build_model, compose
from lmxexp.build import build
from lmxexp.counts import layout, total
from lmxexp.describe import describe
from lmxexp.interfaces import Batch, ConfigError
from lmxexp.optim.build import build_optimizer
from lmxexp.train.step import TrainStep
from tests.contracts.small_models import PRESETS, VOCAB, small_config
from tests.end_to_end.processes import lmxexp

SMALL = ["model.d_model=32", "model.n_heads=4", "model.n_kv_heads=2", "model.n_layers=3", "model.d_ff=48"]


def test_a_llama_by_hand():
    D, L, V, S = 32, 3, 256, 20
    d = describe(compose([*SMALL, "train.seq_len=20"]))
    layer = {"mixer": D * D + 2 * D * 16 + D * D, "ffn": 3 * D * 48, "norms": 2 * D}
    assert (d.vocab_size, d.vocab_source) == (V, "tokenizer=byte")
    assert d.layout == "3 x [layer]"
    assert d.layers[0].made_of == "attention=gqa ffn=swiglu"
    assert {name: p.params for name, p in d.layers[0].parts.items()} == {name: L * n for name, n in layer.items()}
    assert {name: p.params for name, p in d.parts.items()} == {
        "embedding": V * D,
        "mixer": L * layer["mixer"],
        "ffn": L * layer["ffn"],
        "norms": L * layer["norms"] + D,
        "head": 0,
    }
    assert d.params == d.active_params == total(d.parts).params == V * D + D + L * sum(layer.values())
    # A position sees itself and those before it: (S + 1) / 2 on average, two products of four heads of eight.
    mixing = L * 4 * D * (S + 1) // 2
    assert d.parts["mixer"].mixing_flops == mixing
    assert d.flops == 2 * (L * (layer["mixer"] + layer["ffn"]) + V * D) + mixing
    assert d.training_flops == 3 * d.flops
    assert (d.state, d.state_growth) == (L * 2 * 16 * S, L * 2 * 16)


def test_experts_that_a_token_does_not_meet():
    sizes = [*SMALL, "ffn.d_expert=24"]
    d = describe(compose([*sizes, "model=mixtral"]))
    layer = d.layers[0]
    assert layer.parts["ffn"].params == 3 * (8 * 3 * 32 * 24 + 8 * 32)
    assert layer.parts["ffn"].active_params == 3 * (2 * 3 * 32 * 24 + 8 * 32)
    assert layer.parts["ffn"].flops == 2 * layer.parts["ffn"].active_params
    assert d.params - d.active_params == 3 * 6 * 3 * 32 * 24
    # Beside each expert's matrices stand its biases.
    biased = describe(compose([*sizes, "model=mixtral", "model.bias=true"])).layers[0].parts["ffn"]
    assert biased.params - layer.parts["ffn"].params == 3 * 8 * (24 + 24 + 32)
    assert biased.active_params - layer.parts["ffn"].active_params == 3 * 2 * (24 + 24 + 32)


def test_layers_of_several_kinds():
    d = describe(compose([*SMALL[:-2], "model=gemma2", "model.n_layers=5", "attention@local=mamba2"]))
    assert d.layout == "2 x [local layer] + local"
    assert [(k.name, k.count) for k in d.layers] == [("local", 3), ("layer", 2)]
    assert [k.made_of.split()[0] for k in d.layers] == ["attention@local=mamba2", "attention=gqa"]
    assert sum(k.state for k in d.layers) == d.state
    assert sum(total(k.parts).params for k in d.layers) + total(d.outside).params == d.params
    d = describe(compose([*SMALL, "model=smollm3", "model.n_layers=4"]))
    assert d.layers[1].made_of == "attention=gqa ffn=swiglu position=null"


def test_layout_in_one_line():
    pattern = {"first": ["dense"], "repeat": ["a", "b"], "last": ["c"]}
    assert layout(["dense", "a", "b", "a", "b", "a", "c"], pattern) == "dense + 2 x [a b] + a + c"
    assert layout(["dense", "c"], pattern) == "dense + c"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset):
    """All parts are counted (that is asserted inside), and the step can be followed."""
    d = describe(small_config(f"model={preset}"), VOCAB)
    assert d.params > 0
    assert d.memory is not None, d.memory_missing
    assert d.memory.peak > d.memory.weights + d.memory.optimizer


@pytest.mark.parametrize(
    ("overrides", "size", "source"),
    [
        (["tokenizer=bpe", "tokenizer.vocab_size=300"], 300, "tokenizer=bpe, at most"),
        (["tokenizer=char"], 50257, "assumed: tokenizer=char tells only with its data; --vocab N"),
        (["data=mqar", "data.vocab_size=64"], 64, "data.vocab_size"),
    ],
)
def test_vocabulary_without_data(overrides, size, source):
    d = describe(compose([*SMALL, *overrides]))
    assert (d.vocab_size, d.vocab_source) == (size, source)


def test_nothing_is_made():
    """350 million parameters are counted in next to no memory, and the random state stays as it was."""
    mx.random.seed(3)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    d = describe(compose(["model=gpt", "size=350m", "train.batch_size=8", "train.seq_len=1024"]), 50257)
    assert d.params > 340e6
    assert d.memory.peak > 4 * 4 * 340e6
    assert mx.get_peak_memory() - before < 1e6
    drawn = mx.random.uniform().item()
    mx.random.seed(3)
    assert mx.random.uniform().item() == drawn


def measured_peak(cfg) -> float:
    """Of one training step, on the CPU, in bytes."""
    before = mx.get_active_memory()
    model = build_model(cfg, vocab_size=256)
    optimizer = build_optimizer(build(cfg.optim), build(cfg.schedule))
    optimizer.init(model.trainable_parameters())
    step = TrainStep(model, optimizer, build(cfg.loss), n_micro=cfg.train.n_micro, compile=False)
    tokens = np.random.default_rng(0).integers(0, 256, (cfg.train.batch_size, cfg.train.seq_len))
    for _ in range(2):
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval(step(Batch(tokens, tokens)), step.state)
    return mx.get_peak_memory() - before


@pytest.mark.skipif(mx.default_device() == mx.gpu, reason="what was measured is the CPU's memory")
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=8"],
        ["model=gpt", "train.batch_size=4", "train.seq_len=256"],
        ["attention=gla", "train.batch_size=4"],
        ["model=mixtral", "train.batch_size=8", "train.n_micro=2"],
    ],
    ids=" ".join,
)
def test_memory_is_about_what_a_step_takes(overrides):
    cfg = compose([*overrides, "train.precision=fp32"])
    assert describe(cfg).memory.peak == pytest.approx(measured_peak(cfg), rel=0.2)


def test_documents_of_a_mixture_are_kept_apart_in_the_estimate():
    source = ["+data@data.sources.a=text", "data.sources.a.path=none.txt", "data.sources.a.document_mask=true"]
    mixture = describe(compose([*SMALL, "data=mixture", *source])).memory
    alone = describe(compose([*SMALL, "data=text", "data.path=none.txt", "data.document_mask=true"])).memory
    assert mixture == alone
    assert mixture.peak > describe(compose([*SMALL, "data=mixture", *source[:2]])).memory.peak


def test_mistakes_are_those_of_a_run():
    with pytest.raises(ConfigError, match=r"model\.n_heads=5 must be a multiple of model\.n_kv_heads=2"):
        describe(compose(["model.n_heads=5"]))
    with pytest.raises(ConfigError, match=r"train\.steps=0 must be at least 1"):
        describe(compose(["train.steps=0"]))


def test_the_process(tmp_path):
    done = lmxexp("model=gemma3", "size=10m", "tokenizer=bpe", cwd=tmp_path, module="lmxexp.describe")
    assert done.returncode == 0, done.stderr
    for said in (
        "gemma3-gqa",
        "vocabulary 4,096 (tokenizer=bpe, at most)",
        "1 x [local local local local local layer]",
    ):
        assert said in done.stdout
    assert "at its peak in training, an estimate" in done.stdout
    assert list(tmp_path.iterdir()) == []

    done = lmxexp("--vocab", "999", "train.seq_len=64", "--json", cwd=tmp_path, module="lmxexp.describe")
    d = json.loads(done.stdout)
    assert (d["vocab_size"], d["seq_len"], d["layers"][0]["count"]) == (999, 64, 4)

    done = lmxexp("position=alibi", "attention=mamba2", cwd=tmp_path, module="lmxexp.describe")
    assert done.returncode == 1
    assert "lmxexp: error: position=alibi would be ignored" in done.stderr
    assert done.stdout == ""


def test_memory_of_one_of_several_devices():
    given = ["model.d_model=64", "model.n_layers=1", "train.batch_size=8", "train.seq_len=32"]
    one = describe(compose(given), 257)
    data = describe(compose(given), 257, n_devices=4)
    parts = describe(compose([*given, "train.parallel=fsdp"]), 257, n_devices=4)
    assert one.devices == ""
    assert data.devices == "4 processes, train.parallel=data: 2 of train.batch_size=8 sequences each"
    assert (data.memory.weights, data.memory.logits) == (one.memory.weights, one.memory.logits // 4)
    assert (parts.memory.weights, parts.memory.logits) == (one.memory.weights // 4, one.memory.logits // 4)
    with pytest.raises(ConfigError, match=r"batch_size=8 must be a multiple of 3, the 3 processes: 9 is the next"):
        describe(compose(given), 257, n_devices=3)
    with pytest.raises(ConfigError, match="it computes with whole parameters"):
        describe(compose([*given, "train.parallel=fsdp", "optim=muon"]), 257, n_devices=4)
