"""Every preset has the parameters that a size is named by, and docs/sizes.md says how many."""

import pytest

from docs import sizes
from lmxexp import compose
from lmxexp.cli.validate import check
from lmxexp.model.language_model import lay_out
from tests.contracts.small_models import PRESETS


@pytest.fixture(scope="module")
def counts():
    return sizes.counts()


@pytest.mark.parametrize("size", sizes.VOCABULARIES)
def test_sizes_are_what_they_are_named(size, counts):
    """Every preset has the parameters that its size is named by; ``python docs/sizes.py --fit PRESET`` proposes how."""
    wanted = sizes.target(size)
    missed = {preset: f"{n / wanted - 1:+.1%}" for (preset, s), (n, _) in counts.items() if s == size}
    assert {p: m for p, m in missed.items() if abs(float(m[:-1])) > 3.0} == {}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_layer_of_the_pattern_is_there(preset):
    """At every size: a part of the palette that no layer uses would be swapped without an effect."""
    for size in (*sizes.VOCABULARIES, "tiny"):
        model = sizes.configured(preset, size).model
        pattern = {part: list(names or []) for part, names in model.net.pattern.items()}
        laid_out = lay_out(model.n_layers, pattern, model.net.blocks)
        assert {name for names in pattern.values() for name in names} == set(laid_out), f"{preset} at {size}"


def test_sizes_page_is_fresh(counts):
    assert sizes.PAGE.read_text("utf-8") == sizes.page(), "docs/sizes.md is stale: run `python docs/sizes.py`"
    assert sizes.README.read_text("utf-8") == sizes.readme(), "README.md is stale: run `python docs/sizes.py`"


@pytest.mark.parametrize(("preset", "size"), [("gpt", "10m"), ("mamba", "350m")])
def test_a_size_is_put_together_as_hydra_does(preset, size):
    wanted = compose([f"model={preset}", f"size={size}"]).model
    made = sizes.configured(preset, size).model
    for key in ("d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"):
        assert made[key] == wanted[key]


def test_what_the_user_says_goes_before_a_presets_own_sizes():
    overrides = ["model=llama", "size=124m", "model.d_ff=1000", "model.n_layers=3"]
    cfg = compose(overrides)
    check(cfg, overrides)
    assert (cfg.model.attention.n_heads, cfg.model.ffn.d_ff, cfg.model.net.n_layers) == (12, 1000, 3)


def test_a_size_of_the_users_own_stands(tmp_path):
    """`widths` and `depths` are looked up by our own sizes."""
    (tmp_path / "model" / "size").mkdir(parents=True)
    file = tmp_path / "model" / "size" / "mine.yaml"
    file.write_text("# @package model\nd_model: 64\nn_layers: 3\nn_heads: 4\nn_kv_heads: 2\nhead_dim: null\nd_ff: 77\n")
    for preset in ("llama", "mamba"):
        cfg = compose([f"model={preset}", "size=mine"], config_dir=tmp_path)
        assert (cfg.model.d_ff, cfg.model.n_layers) == (77, 3)
