"""What is exported comes back: the same model, from its own directory and from configurations written by others."""

import json
import re

import mlx.core as mx
import pytest
from omegaconf import OmegaConf

from lmxexp.export import export
from lmxexp.export.from_hf import from_hf
from lmxexp.export.write import family_names, load_family, model_type_of
from lmxexp.ops.trees import by_path
from tests.contracts.small_models import PRESETS, VOCAB, tokens
from tests.parity.harness import ADJUSTED, DESIGN_IDS, DESIGNS, VARIANTS, make, preset_in


@pytest.mark.parametrize(("name", "variant"), DESIGNS, ids=DESIGN_IDS)
def test_bitwise(name, variant, tmp_path):
    model, cfg = make([*preset_in("small", name), *variant.split()])
    assert export(model, cfg, tmp_path) == name
    again = from_hf(vocab_size=VOCAB, path=str(tmp_path))
    x = tokens()
    assert mx.array_equal(again(x), model(x)).item()
    ours, back = by_path(model.parameters()), by_path(again.parameters())
    assert sorted(ours) == sorted(back)
    assert all(mx.array_equal(ours[n], back[n]).item() for n in ours)
    # Before transformers 5, rope_theta and rope_scaling stood at the top; mlx-lm still looks there.
    config = json.loads((tmp_path / "config.json").read_text())
    if config.get("rope_parameters"):
        older = {k: v for k, v in config.items() if k != "rope_parameters"}
        assert load_family(name).overrides(older) == load_family(name).overrides(config)
    # What is exported a second time is the same, and of the same family.
    written = (tmp_path / "config.json").read_text()
    again_cfg = {"choice": {"model": "from_hf"}, "model": {"path": str(tmp_path)}, "train": dict(cfg.train)}
    assert export(again, OmegaConf.create(again_cfg), tmp_path / "again") == name
    assert (tmp_path / "again" / "config.json").read_text() == written


def test_every_family_has_an_architecture_and_a_preset():
    for name in family_names():
        assert re.fullmatch(r"\w+For\w+|GPT2LMHeadModel", load_family(name).ARCHITECTURE)
        assert name in PRESETS
    types = [model_type_of(name) for name in family_names()]
    assert len(set(types)) == len(types)
    assert set(ADJUSTED) <= set(family_names())
    assert set(VARIANTS) <= set(family_names())
