"""Families with state spaces, as their published configurations are: sizes agree with transformers' own models."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hydra.utils import instantiate  # noqa: E402

from lmxexp.compose import compose  # noqa: E402
from lmxexp.export.family import InexpressibleError  # noqa: E402
from lmxexp.export.write import load_family  # noqa: E402

ONES = load_family("falcon_h1").ONES
# Beside what the configurations take by themselves, which is in most cases one of the published models.
CONFIGS = {
    "mamba 2.8b": ("mamba", {"hidden_size": 2560, "num_hidden_layers": 64}),
    "mamba rank": ("mamba", {"time_step_rank": 160, "use_bias": True, "use_conv_bias": False}),
    "mamba2": ("mamba2", {}),
    "mamba2 130m": ("mamba2", {"hidden_size": 768, "num_heads": 24, "n_groups": 1, "num_hidden_layers": 24}),
    "jamba": ("jamba", {}),
    "jamba without experts": ("jamba", {"num_experts": 1, "num_hidden_layers": 12}),
    "falcon_h1": ("falcon_h1", {}),
    "falcon_h1 1.5 wide": (
        "falcon_h1",
        {"hidden_size": 1024, "mamba_d_ssm": 1536, "mamba_n_heads": 24, "num_attention_heads": 8,
         "mamba_rms_norm": True, "mamba_norm_before_gate": False, **ONES},
    ),
    "nemotron_h 8b": (
        "nemotron_h",
        {"hybrid_override_pattern": "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"},
    ),
    "nemotron_h odd width": (
        "nemotron_h",
        {"hybrid_override_pattern": "M*-", "hidden_size": 2688, "mamba_num_heads": 64, "intermediate_size": 1856},
    ),
    "lfm2": ("lfm2", {"full_attn_idxs": [2, 5, 8]}),
    "lfm2 1.2b": (
        "lfm2",
        {"hidden_size": 2048, "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "block_ff_dim": 12288},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_number_of_parameters(case):
    name, settings = CONFIGS[case]
    config = transformers.AutoConfig.for_model(name, **settings)
    with torch.device("meta"):
        want = transformers.AutoModelForCausalLM.from_config(config).num_parameters()
    cfg = compose(load_family(name).overrides({**settings, **config.to_dict()}))
    # Parameters are counted without being made.
    assert instantiate(cfg.model.net, _convert_="all")(vocab_size=config.vocab_size).n_params() == want


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("falcon_h1", {"key_multiplier": 0.39}, "key_multiplier is 0.39"),
        ("falcon_h1", {"mamba_rms_norm": True}, "norms stand before the gates"),
        ("mamba2", {"hidden_size": 100, "num_hidden_layers": 1}, "num_heads . head_dim is 8192"),
        ("nemotron_h", {"layers_block_type": ["moe"]}, "layers_block_type has moe"),
        ("nemotron_h", {}, "says what the layers are"),
        ("lfm2", {"layer_types": ["conv", "sliding_attention"]}, "layer_types has sliding_attention"),
    ],
)
def test_what_cannot_be_composed_is_refused(name, settings, reason):
    with pytest.raises(InexpressibleError, match=reason):
        load_family(name).overrides(settings)
