"""Directories that others wrote: older names, several files, other types, and all that can be wrong with them."""

import json

import mlx.core as mx
import pytest

from lmxexp import build_model, compose, load, run
from lmxexp.cli.validate import check
from lmxexp.export import export
from lmxexp.export.__main__ import main as export_command
from lmxexp.export.from_hf import from_hf
from lmxexp.export.rotary import read_rope, rope_overrides
from lmxexp.export.write import family_names, load_family
from lmxexp.generate import generate
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from tests.contracts.small_models import VOCAB, tokens
from tests.end_to_end.processes import small
from tests.parity.harness import make, preset_in


@pytest.fixture
def llama(tmp_path):
    """An exported llama; the logits that it gives."""
    model, cfg = make(preset_in("small", "llama"))
    export(model, cfg, tmp_path)
    return tmp_path, model


def read(directory, name="config.json"):
    return json.loads((directory / name).read_text())


def change(directory, drop=(), **settings):
    config = {k: v for k, v in {**read(directory), **settings}.items() if k not in drop}
    (directory / "config.json").write_text(json.dumps(config))


def weights(directory):
    arrays = dict(mx.load(str(directory / "model.safetensors")))
    mx.eval(arrays)  # the file will be overwritten
    return arrays


def same_logits(directory, model):
    x = tokens()
    return mx.array_equal(from_hf(vocab_size=VOCAB, path=str(directory))(x), model(x)).item()


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_scaling_by_its_older_names(tmp_path):
    model, cfg = make([*preset_in("small", "llama"), "position=rope_llama3"])
    export(model, cfg, tmp_path)
    scaling = read(tmp_path)["rope_scaling"]
    scaling = {k: v for k, v in scaling.items() if k not in ("rope_theta", "rope_type")} | {"type": "llama3"}
    change(tmp_path, drop=["rope_parameters"], rope_scaling=scaling)
    assert same_logits(tmp_path, model)


def test_the_length_before_a_scaling_is_the_models_own_where_none_is_stated():
    rope = read_rope(
        {"rope_scaling": {"type": "yarn", "factor": 2.0}, "rope_theta": 5e5, "max_position_embeddings": 77}
    )
    assert rope == {"rope_type": "yarn", "factor": 2.0, "rope_theta": 5e5, "original_max_position_embeddings": 77}
    assert "model.position.attention.scaling.original_len=77" in rope_overrides(rope)


def test_what_is_usual_may_be_left_out():
    """In every family, sizes alone are a model."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 96}
    for name in PUBLISHED:
        least = {"n_embd": 64, "n_layer": 2, "n_head": 4} if name == "gpt" else sizes
        assert f"model={name}" in load_family(name).overrides({**least, "vocab_size": 9})


def test_several_files_bf16_buffers_and_a_tied_head(llama):
    directory, model = llama
    arrays = {name: a.astype(mx.bfloat16) for name, a in weights(directory).items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = mx.zeros((4,))
    names = sorted(arrays)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, inside in parts.items():
        mx.save_safetensors(str(directory / file), {n: arrays[n] for n in inside})
    index = {"metadata": {}, "weight_map": {n: file for file, inside in parts.items() for n in inside}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()
    model.set_dtype(mx.bfloat16)
    model.set_dtype(mx.float32)
    assert same_logits(directory, model)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"lacks model-00002-of-00002\.safetensors, which model\.safetensors\.index\.json"
    ):
        from_hf(vocab_size=VOCAB, path=str(directory))


# --- what is refused --------------------------------------------------------------------------------------------------


def test_another_vocabulary(llama):
    directory, _ = llama
    with pytest.raises(
        ConfigError, match=rf"256 tokens.*was made for 19: tokenizer=pretrained tokenizer.path={directory}"
    ):
        from_hf(vocab_size=256, path=str(directory))
    # A matrix with more rows than its tokenizer has tokens is usual.
    padded, cfg = make(preset_in("small", "llama"), vocab_size=260)
    export(padded, cfg, directory, ByteTokenizer())
    assert from_hf(vocab_size=256, path=str(directory)).vocab_size == 260
    with pytest.raises(ConfigError, match="255 tokens"):
        from_hf(vocab_size=255, path=str(directory))


def test_files_that_do_not_fit(llama):
    directory, _ = llama
    arrays, file = weights(directory), str(directory / "model.safetensors")
    attempt = lambda: from_hf(vocab_size=VOCAB, path=str(directory))
    mx.save_safetensors(file, {n: a for n, a in arrays.items() if "layers.1" not in n})
    with pytest.raises(ConfigError, match=r"lacks model\.layers\.1\.input_layernorm\.weight, .* and 6 more"):
        attempt()
    mx.save_safetensors(file, {**arrays, "model.layers.0.self_attn.q_proj.bias": mx.zeros((32,))})
    with pytest.raises(ConfigError, match=r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"):
        attempt()
    mx.save_safetensors(file, arrays)
    change(directory, intermediate_size=64)
    with pytest.raises(ConfigError, match=r"gate_proj.weight is \[48, 32\] there, and \[64, 32\] by its config.json"):
        attempt()
    change(directory, quantization_config={"bits": 4})
    with pytest.raises(ConfigError, match="is quantised"):
        attempt()
    (directory / "model.safetensors").unlink()
    change(directory, drop=["quantization_config"])
    with pytest.raises(ConfigError, match="no safetensors"):
        attempt()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "bert"}, "a model of type bert; known are .*llama"),
        ({"hidden_act": "gelu"}, "this llama cannot be composed: hidden_act is gelu, not silu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "rope_type is dynamic"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "odd": 1}, "rope_parameters": None},
            "rope_parameters have odd",
        ),
    ],
)
def test_designs_that_cannot_be_composed(settings, reason, llama):
    change(llama[0], **settings)
    with pytest.raises(ConfigError, match=reason):
        from_hf(vocab_size=VOCAB, path=str(llama[0]))


def test_no_directory(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="is no directory: give one"):
        from_hf(vocab_size=VOCAB, path=str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        from_hf(vocab_size=VOCAB, path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        from_hf(vocab_size=VOCAB, path=str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no network\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConfigError, match=r"could not be had from the hub at model.revision=v2 \(no network\): check"):
        from_hf(vocab_size=VOCAB, path="owner/name", revision="v2")


def test_a_name_on_the_hub(llama, monkeypatch):
    asked = {}

    def snapshot_download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision)
        return str(llama[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    x = tokens()
    assert mx.array_equal(from_hf(vocab_size=VOCAB, path="owner/name")(x), llama[1](x)).item()
    assert asked == {"name": "owner/name", "revision": "main"}


# --- published configurations -----------------------------------------------------------------------------------------

# What published files say, where it says something about the design, and what of ours it has to become.
PUBLISHED = {
    "llama": (
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
         "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                          "original_max_position_embeddings": 8192, "rope_type": "llama3"}},
        {"attention.n_kv_heads": 8, "position.attention.theta": 5e5, "position.attention.scaling.factor": 32.0,
         "norm.eps": 1e-5},
    ),
    "mistral": (
        {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
         "intermediate_size": 14336, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": None},
        {"attention.reach": None, "norm.eps": 1e-5, "head_dim": 128},
    ),
    "gemma": (
        {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1,
         "head_dim": 256, "intermediate_size": 16384, "hidden_act": "gelu", "rms_norm_eps": 1e-6},
        {"attention.n_kv_heads": 1, "ffn.activation": "gelu_tanh", "head_dim": 256},
    ),
    "gemma2": (
        {"hidden_size": 4608, "num_hidden_layers": 46, "num_attention_heads": 32, "num_key_value_heads": 16,
         "head_dim": 128, "intermediate_size": 36864, "query_pre_attn_scalar": 144, "sliding_window": 4096,
         "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_theta": 10000.0},
        {"attention.scale": 144**-0.5, "local.scale": 144**-0.5, "local.reach.window": 4096, "score_softcap.cap": 50.0,
         "net.pattern.repeat": ["local", "layer"] * 23},
    ),
    "gemma3": (
        {"hidden_size": 1152, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 1,
         "head_dim": 256, "intermediate_size": 6912, "query_pre_attn_scalar": 256, "sliding_window": 512,
         "sliding_window_pattern": 6, "rope_theta": 1000000, "rope_local_base_freq": 10000},
        {"position.attention.theta": 1e6, "local_position.attention.theta": 1e4, "local.reach.window": 512,
         "net.pattern.repeat": ["local"] * 5 + ["layer"] + ["local"] * 2, "attention.scale": None},
    ),
    "qwen2": (
        {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
         "intermediate_size": 4864, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "sliding_window": 32768,
         "use_sliding_window": False, "max_window_layers": 21, "tie_word_embeddings": True},
        {"attention.reach": None, "attention.qkv_bias": True, "attention.bias": False, "head_dim": 64},
    ),
    "qwen3": (
        {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 3072, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
         "tie_word_embeddings": True, "attention_bias": False},
        {"head_dim": 128, "qk_norm.norm.eps": 1e-6, "position.attention.theta": 1e6},
    ),
    "olmo2": (
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
         "intermediate_size": 8192, "rms_norm_eps": 1e-6, "rope_theta": 500000, "tie_word_embeddings": False},
        {"norm.eps": 1e-6, "qk_norm.norm.eps": 1e-6, "position.attention.theta": 5e5},
    ),
    "gpt": (
        {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "n_ctx": 1024,
         "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
        {"ffn.activation": "gelu_tanh", "d_ff": 3072, "position.embedding.max_len": 1024},
    ),
    "nanochat": (
        {"hidden_size": 2048, "num_hidden_layers": 32, "num_attention_heads": 16, "num_key_value_heads": 16,
         "intermediate_size": 8192, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "final_logit_softcapping": 15.0},
        {"norm.eps": 1e-6, "logit_softcap.cap": 15.0, "attention.n_kv_heads": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family_name", PUBLISHED)
def test_published_configurations(family_name):
    theirs, expected = PUBLISHED[family_name]
    cfg = compose(load_family(family_name).overrides({"vocab_size": 32000, **theirs}))
    check(cfg)
    for key, value in expected.items():
        node = cfg.model
        for part in key.split("."):
            node = node.get(part)
        assert node == value, f"{key} is {node}"


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_train_export_tune_resume_and_score(tmp_path, capsys):
    """The whole way: a run's model goes out and comes back, is scored as it was, trained on, and goes out again."""
    first = run(compose(small(tmp_path, "tokenizer=bpe", "tokenizer.vocab_size=270")), tmp_path / "first")
    out = tmp_path / "out"
    export_command([str(first.run_dir), str(out)])
    assert f"{out}: llama, " in capsys.readouterr().out
    imported = ["model=from_hf", f"model.path={out}", "tokenizer=pretrained", f"tokenizer.path={out}"]
    of_a_llama = ("model.d_model", "model.n_")
    settings = [o for o in small(tmp_path) if not o.startswith(of_a_llama)]

    scored = run(compose([*settings, *imported, "train.steps=1", "optim.learning_rate=1e-30"]), tmp_path / "scored")
    assert scored.score == pytest.approx(first.score, rel=1e-6)

    tuned = run(compose([*settings, *imported]), tmp_path / "tuned")
    assert tuned.score < first.score
    on = run(compose([f"resume={tuned.run_dir}", "train.steps=16"]))
    assert on.summary["step"] == 16
    loaded = load(tuned.run_dir)
    assert len(list(generate(loaded.model, [1, 2], max_tokens=5))) == 5
    export_command([str(tuned.run_dir), str(tmp_path / "again"), "--checkpoint", "best"])
    x = tokens()
    best = load(tuned.run_dir, "best").model
    assert mx.array_equal(from_hf(vocab_size=best.vocab_size, path=str(tmp_path / "again"))(x), best(x)).item()
    with pytest.raises(ConfigError, match="tokenizer=pretrained"):
        run(compose([*settings, *imported[:2]]), tmp_path / "other")


def test_the_design_alone(llama):
    """An initialisation of another kind starts the published design from scratch."""
    cfg = compose(["model=from_hf", f"model.path={llama[0]}", "init=gpt2", "model.dropout=0.25"])
    check(cfg)
    model = build_model(cfg, vocab_size=VOCAB)
    assert model.layers[0].self_attn.dropout == 0.25
    weight = model.layers[0].self_attn.q_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    kept = build_model(compose(["model=from_hf", f"model.path={llama[0]}"]), vocab_size=VOCAB)
    assert mx.array_equal(kept.layers[0].self_attn.q_proj.weight, llama[1].layers[0].self_attn.q_proj.weight).item()


def test_families_named_here_are_there():
    assert set(PUBLISHED) <= set(family_names())
