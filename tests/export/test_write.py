"""What is written, what is refused, and what happens to what lay there before."""

import json

import mlx.core as mx
import pytest

from lmxexp.export import export
from lmxexp.export.__main__ import main
from lmxexp.export.write import family_names, load_family
from lmxexp.interfaces import ConfigError
from lmxexp.tokenizer.byte import ByteTokenizer
from tests.parity.harness import make, preset_in


def exported(directory, *overrides, tokenizer=None):
    model, cfg = make([*preset_in("small", "llama"), *overrides])
    return export(model, cfg, directory, tokenizer)


def test_files_and_general_settings(tmp_path):
    assert exported(tmp_path / "deep" / "out", tokenizer=ByteTokenizer()) == "llama"
    out = tmp_path / "deep" / "out"
    assert sorted(f.name for f in out.iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert [f.name for f in out.parent.iterdir()] == ["out"], "nothing is left beside it"
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == 24
    assert (config["dtype"], config["eos_token_id"]) == ("float32", None)
    assert config["exported_by"].startswith("lmxexp ")


def test_the_type_of_the_weights_is_stated(tmp_path):
    model, cfg = make(preset_in("small", "llama"))
    model.set_dtype(mx.bfloat16)
    export(model, cfg, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_export_is_replaced_as_a_whole(tmp_path):
    exported(tmp_path, tokenizer=ByteTokenizer())
    (tmp_path / "README.md").write_text("the user's own")
    exported(tmp_path, "position=rope_linear")
    assert json.loads((tmp_path / "config.json").read_text())["rope_parameters"]["rope_type"] == "linear"
    assert not (tmp_path / "tokenizer.json").exists(), "of the model before"
    assert (tmp_path / "README.md").exists()


@pytest.mark.parametrize("content", ["{}", "not json", "[]", '"exported_by"'])
def test_another_directory_is_left_alone(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="no export of ours"):
        exported(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        exported(tmp_path / "config.json")
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]


def test_a_disk_that_fills_up_leaves_the_export_before(tmp_path, monkeypatch):
    out = tmp_path / "out"
    exported(out)
    before = {f.name: f.read_bytes() for f in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        exported(out, "position=rope_linear")
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


# An override of a llama, and why it then is none.
REFUSED = {
    "position=alibi": "being llama: the position is ALiBi, not RoPE",
    "position=none": "the position is absent, not RoPE",
    "position=rope_ntk": "rope has scaling=NTK",
    "position=rope_interleaved": "rope pairs neighbours",
    "position=sinusoidal": "there are position embeddings",
    "norm=dyt": "a norm is DynamicTanh, not RMSNorm",
    "value_residual=learned": "attention has value residual",
    "attention=sink": "attention has sinks",
    "attention=none": "a layer lacks a sublayer",
    "softcap@model.logit_softcap=tanh": "logits are soft-capped",
    "norm@model.embedding_norm=rmsnorm": "embeddings are normalised",
    "model.attention.scale=0.3": "scores are scaled by 0.3",
    "block=parallel": "the block is Parallel, not PreNorm",
    "qk_norm=rmsnorm_unscaled": "queries and keys are normalised",
}


@pytest.mark.parametrize("override", REFUSED)
def test_the_reason_is_told(override, tmp_path):
    with pytest.raises(ConfigError, match=f"no published family has this design.*{REFUSED[override]}"):
        exported(tmp_path / "out", override)
    assert not (tmp_path / "out").exists()


def test_norms_of_one_eps():
    model, cfg = make([*preset_in("small", "qwen3"), "norm=rmsnorm"])
    with pytest.raises(
        ConfigError, match=r"from being qwen3: eps of the norms differs between layers: \['1e-05', '1e-06'\]"
    ):
        export(model, cfg, "/nowhere")


def test_of_a_preset_without_a_family_the_nearest_is_told():
    model, cfg = make([*preset_in("small", "gemma2"), "attention=sink"])
    cfg = cfg.copy()
    cfg.choice.model = "my_own"
    with pytest.raises(ConfigError, match="from being gemma2: attention has sinks"):
        export(model, cfg, "/nowhere")


def test_a_design_decides_not_the_name_of_the_preset(tmp_path):
    assert exported(tmp_path / "a", "attention=sliding") == "mistral"
    assert exported(tmp_path / "b", "qk_norm=rmsnorm", "norm=rmsnorm_small_eps") == "qwen3"
    assert exported(tmp_path / "c", "model.qkv_bias=true") == "qwen2"


def test_every_module_is_a_family():
    for name in family_names():
        family = load_family(name)
        assert all(callable(getattr(family, f)) for f in ("config", "ties", "overrides"))
        assert (family.__doc__ or "").strip()


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="is not the directory of a run"):
        main([str(tmp_path), str(tmp_path / "out")])
